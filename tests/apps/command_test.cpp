// The command as a user runs it: exit codes, what stands on standard output and what on standard error.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cctype>
#include <chrono>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "apps/small_model.hpp"
#include "engine/utf8.hpp"

extern char** environ;

namespace fulmen {
namespace {

using Json = nlohmann::json;
using test::SmallModel;
using test::TemporaryFile;

const std::string& model() {
  static const TemporaryFile file(SmallModel::smollm().gguf().text(), ".gguf");
  return file.path();
}

struct Result {
  int code = -1;  // 128 + signal if it was killed
  std::string out, err;
};

struct Run {
  std::vector<std::string> arguments;
  std::string input;
  bool interrupt_at_first_output = false;
  std::vector<std::string> variables;  // NAME=value, besides the caller's own
};

Result run(const Run& how) {
  int in[2], out[2], err[2];
  EXPECT_EQ(0, pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC) | pipe2(err, O_CLOEXEC));
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, in[0], 0);
  posix_spawn_file_actions_adddup2(&files, out[1], 1);
  posix_spawn_file_actions_adddup2(&files, err[1], 2);
  std::vector<std::string> words = how.arguments, variables = how.variables;
  words.insert(words.begin(), FULMEN_COMMAND);
  std::vector<char*> argv, envp;
  for (std::string& word : words) argv.push_back(word.data());
  for (char** v = environ; *v; ++v)
    if (std::string_view(*v).rfind("FULMEN_", 0) != 0) envp.push_back(*v);
  for (std::string& v : variables) envp.push_back(v.data());
  argv.push_back(nullptr);
  envp.push_back(nullptr);
  pid_t child = 0;
  EXPECT_EQ(0, posix_spawn(&child, FULMEN_COMMAND, &files, nullptr, argv.data(), envp.data()));
  posix_spawn_file_actions_destroy(&files);
  for (const int fd : {in[0], out[1], err[1]}) close(fd);
  EXPECT_EQ(static_cast<ssize_t>(how.input.size()), write(in[1], how.input.data(), how.input.size()));
  close(in[1]);

  Result result;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  pollfd polls[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
  std::string* texts[2] = {&result.out, &result.err};
  bool interrupted = false;
  while (polls[0].fd >= 0 || polls[1].fd >= 0) {
    if (poll(polls, 2, 1000) < 0) break;
    for (int i = 0; i < 2; ++i) {
      if (polls[i].fd < 0 || !polls[i].revents) continue;
      char block[4096];
      const ssize_t n = read(polls[i].fd, block, sizeof block);
      if (n > 0) texts[i]->append(block, static_cast<size_t>(n));
      else polls[i].fd = -1;
    }
    if (how.interrupt_at_first_output && !interrupted && !result.out.empty()) {
      kill(child, SIGINT);
      interrupted = true;
    }
    if (std::chrono::steady_clock::now() > deadline) {
      ADD_FAILURE() << "still running after a minute";
      kill(child, SIGKILL);
      break;
    }
  }
  close(out[0]);
  close(err[0]);
  int status = 0;
  waitpid(child, &status, 0);
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

Result fulmen(std::vector<std::string> arguments, std::string input = "") {
  return run({.arguments = std::move(arguments), .input = std::move(input), .variables = {}});
}

Result generate(std::vector<std::string> more, std::string input = "") {
  more.insert(more.begin(), {"generate", "-m", model(), "--threads", "2"});
  return fulmen(std::move(more), std::move(input));
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

bool one_line(const std::string& text) { return std::count(text.begin(), text.end(), '\n') == 1 && text.back() == '\n'; }

TEST(Command, HelpAndVersion) {
  const Result help = fulmen({"--help"});
  EXPECT_EQ(help.code, 0);
  for (const char* word : {"generate", "demo", "bench", "prepare", "info", "explain", "Exit codes", "130"})
    EXPECT_NE(help.out.find(word), std::string::npos) << word;
  const Result options = fulmen({"generate", "--help"});
  EXPECT_EQ(options.code, 0);
  for (const char* word :
       {"--model", "--prompt", "--file", "--system", "--chat", "--chat-template", "--stop", "--context", "--device",
        "--max-tokens", "--temperature", "--top-k", "--top-p", "--min-p", "--seed", "--batch", "--pages", "--kv-memory",
        "--threads", "--invariant", "--stats", "--quiet", "--log-level", "--json", "--special", "--no-mmap"})
    EXPECT_NE(options.out.find(word), std::string::npos) << word;
  const Result version = fulmen({"--version"});
  EXPECT_EQ(version.code, 0);
  EXPECT_EQ(version.out.rfind("fulmen ", 0), 0u);
}

std::string text_of(const std::string& path) {
  std::ifstream file(std::string(FULMEN_SOURCE_DIR "/") + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Every option of every command stands in its page, the man page and the completions.
TEST(Command, OptionsAreDocumented) {
  std::map<std::string, std::string> pages;
  for (const char* path : {"docs/cli.md", "apps/fulmen/fulmen.1", "apps/fulmen/completion/fulmen.bash",
                           "apps/fulmen/completion/_fulmen", "apps/fulmen/completion/fulmen.fish"})
    pages[path] = text_of(path);
  std::string man = pages["apps/fulmen/fulmen.1"];
  std::erase(man, '\\');  // hyphens are escaped there
  pages["apps/fulmen/fulmen.1"] = man;
  size_t options = 0;
  for (const char* command : {"generate", "demo", "bench", "prepare", "info", "explain"}) {
    const std::string help = fulmen({command, "--help"}).out;
    for (size_t at = help.find("--"); at != std::string::npos; at = help.find("--", at + 2)) {
      size_t end = at + 2;
      while (end < help.size() && (std::isalnum(static_cast<unsigned char>(help[end])) || help[end] == '-')) ++end;
      const std::string option = help.substr(at, end - at);
      if (option.size() < 4) continue;
      ++options;
      for (const auto& [path, text] : pages) {
        const std::string name = path.ends_with(".fish") ? "-l " + option.substr(2) : option;
        EXPECT_NE(text.find(name), std::string::npos) << option << " of " << command << " is missing in " << path;
      }
    }
  }
  EXPECT_GT(options, 50u);
}

TEST(Command, WrongCommandLinesGiveTwo) {
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {}, {"nothing"}, {"generate", "--no-such-option"}, {"generate", "--max-tokens", "0"},
           {"generate", "--max-tokens", "many"}, {"generate", "--top-p", "1.5"}, {"generate", "--device", "tpu"},
           {"generate", "--kv-memory", "much"}, {"generate", "--pages", "5", "--kv-memory", "1M"}}) {
    const Result result = fulmen(arguments);
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_TRUE(result.out.empty());
    EXPECT_EQ(result.err.rfind("fulmen: error: ", 0), 0u) << result.err;
  }
}

TEST(Command, OnePromptGivesItsAnswerAlone) {
  const Result a = generate({"-p", "hello", "--max-tokens", "20"});
  EXPECT_EQ(a.code, 0) << a.err;
  EXPECT_FALSE(a.out.empty());
  EXPECT_EQ(a.out.back(), '\n');
  EXPECT_TRUE(a.err.empty()) << a.err;
  const Result again = fulmen({"generate", "--model", model(), "-p", "hello", "--max-tokens", "20", "--invariant",
                               "--threads", "1", "--chunk", "3"});
  EXPECT_EQ(again.out, a.out);
}

TEST(Command, SeveralPromptsStandUnderTheirPrompt) {
  const Result both = generate({"-p", "hello", "-p", "two\nlines", "--max-tokens", "10"});
  EXPECT_EQ(both.code, 0);
  const Result first = generate({"-p", "hello", "--max-tokens", "10"});
  const Result second = generate({"-p", "two\nlines", "--max-tokens", "10"});
  EXPECT_EQ(both.out, "> hello\n" + first.out + "\n> two\n> lines\n" + second.out);
}

TEST(Command, FilesAndStandardInput) {
  const TemporaryFile file("one\n\ntwo\r\n");
  const Result from_file = generate({"-f", file.path(), "--max-tokens", "5", "--json"});
  EXPECT_EQ(from_file.code, 0);
  const auto lines = lines_of(from_file.out);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(Json::parse(lines[0])["prompt"], "one");
  EXPECT_EQ(Json::parse(lines[1])["prompt"], "two");
  const Result from_input = generate({"-", "--max-tokens", "5", "--json", "--format", "text"}, "one\ntwo");
  EXPECT_EQ(Json::parse(from_input.out)["prompt"], "one\ntwo");
}

TEST(Command, JsonHasItsFields) {
  const Result result = generate({"-p", "hello", "--system", "Be brief.", "--max-tokens", "6", "--ignore-end", "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(one_line(result.out));
  const Json object = Json::parse(result.out);
  EXPECT_EQ(object["version"], 1);
  EXPECT_EQ(object["index"], 0);
  EXPECT_EQ(object["prompt"], "hello");
  EXPECT_GT(object["prompt_tokens"].size(), 10u);
  EXPECT_EQ(object["tokens"].size(), 6u);
  EXPECT_TRUE(object["text"].is_string());
  EXPECT_EQ(object["finish"], "length");
  EXPECT_FALSE(object.contains("error"));
  for (const char* key : {"queued_s", "first_token_s", "total_s", "prefill_tokens_per_s", "decode_tokens_per_s",
                          "shared_prompt_tokens", "preemptions"})
    EXPECT_TRUE(object["timings"][key].is_number()) << key;
}

TEST(Command, JsonLinesCarryTheirOwnSettings) {
  const Result result = generate({"-", "--json", "--max-tokens", "9", "--ignore-end"},
                                 R"({"prompt": "hello", "max_tokens": 3})"
                                 "\n"
                                 R"({"messages": [{"role": "user", "content": "hi"}], "temperature": 2, "seed": 4})"
                                 "\n"
                                 R"({"prompt": "hello", "max_tokens": -3})"
                                 "\n"
                                 R"({"prompt": "hello", "colour": 1})"
                                 "\n[1, 2]\n{\"prompt\n");
  EXPECT_EQ(result.code, 1);
  const auto lines = lines_of(result.out);
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_EQ(Json::parse(lines[0])["tokens"].size(), 3u);
  EXPECT_EQ(Json::parse(lines[1])["tokens"].size(), 9u);
  for (int i = 2; i < 6; ++i) {
    EXPECT_EQ(Json::parse(lines[i])["finish"], "error");
    EXPECT_FALSE(Json::parse(lines[i])["error"].get<std::string>().empty());
  }
  EXPECT_EQ(lines_of(result.err).size(), 4u) << result.err;
  EXPECT_NE(result.err.find("prompt 4: unknown key 'colour'"), std::string::npos) << result.err;
}

TEST(Command, BadPromptsHarmNobody) {
  const std::string long_prompt(5000, 'x');
  const Result result = generate({"-", "--max-tokens", "5"}, "good\nbad \xff byte\n" + long_prompt + "\nalso good\n");
  EXPECT_EQ(result.code, 1);
  const auto errors = lines_of(result.err);
  ASSERT_EQ(errors.size(), 2u) << result.err;
  EXPECT_EQ(errors[0].rfind("fulmen: error: prompt 2: ", 0), 0u) << errors[0];
  EXPECT_EQ(errors[1].rfind("fulmen: error: prompt 3: the prompt has ", 0), 0u) << errors[1];
  EXPECT_NE(result.out.find("> good\n"), std::string::npos);
  EXPECT_NE(result.out.find("> also good\n"), std::string::npos);
  EXPECT_EQ(generate({"-p", ""}).code, 1);
}

TEST(Command, BadInputGivesThreeAndOneLine) {
  const TemporaryFile junk("GGUFjunk"), whole(SmallModel::smollm().gguf().text());
  const TemporaryFile truncated(SmallModel::smollm().gguf().text().substr(0, 20000));
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {"generate", "-p", "x", "-m", "/nonexistent.gguf"},
           {"generate", "-p", "x", "-m", junk.path()},
           {"generate", "-p", "x", "-m", truncated.path()},
           {"generate", "-p", "x", "-m", "/tmp"},
           {"generate", "-m", whole.path()},
           {"generate", "-m", whole.path(), "-f", "/nonexistent.txt"},
           {"generate", "-m", whole.path(), "-p", "x", "--context", "100000"},
           {"generate", "-m", whole.path(), "-p", "x", "--chat-template", "none", "--system", "x"},
           {"generate", "-m", whole.path(), "-p", "x", "--chat-template", "klingon"}}) {
    const Result result = fulmen(arguments);
    EXPECT_EQ(result.code, 3) << result.err;
    EXPECT_TRUE(one_line(result.err)) << result.err;
    EXPECT_TRUE(result.out.empty());
  }
}

TEST(Command, DeviceCudaIsAnErrorAndAutoIsNot) {
  const Result cuda = generate({"-p", "x", "--device", "cuda"});
  EXPECT_EQ(cuda.code, 4);
  EXPECT_TRUE(one_line(cuda.err)) << cuda.err;
  const Result automatic = generate({"-p", "x", "--device", "auto", "--max-tokens", "3"});
  EXPECT_EQ(automatic.code, 0);
  EXPECT_TRUE(one_line(automatic.err)) << automatic.err;
  EXPECT_TRUE(generate({"-p", "x", "--device", "auto", "--max-tokens", "3", "-q"}).err.empty());
}

TEST(Command, InterruptPrintsWhatWasMade) {
  SmallModel endless = SmallModel::smollm();
  endless.context = 200000;
  const TemporaryFile file(endless.gguf().text());
  const Result result = run({.arguments = {"generate", "-m", file.path(), "-p", "hello", "--threads", "1", "--context",
                                           "200000", "--max-tokens", "190000", "--ignore-end"},
                             .input = "",
                             .interrupt_at_first_output = true,
                             .variables = {}});
  EXPECT_EQ(result.code, 130) << result.err;
  EXPECT_FALSE(result.out.empty());
  EXPECT_EQ(result.out.back(), '\n');
  EXPECT_FALSE(engine::first_invalid_utf8(result.out));
}

TEST(Command, ChatRemembers) {
  const Result one = generate({"--chat", "--max-tokens", "8"}, "hello\n");
  const Result two = generate({"--chat", "--max-tokens", "8"}, "hello\nhello\n");
  const Result cleared = generate({"--chat", "--max-tokens", "8"}, "hello\n/clear\nhello\n/exit\nhello\n");
  EXPECT_EQ(one.code | two.code | cleared.code, 0);
  EXPECT_EQ(two.out.rfind(one.out, 0), 0u);
  EXPECT_EQ(cleared.out, one.out + one.out);
  EXPECT_NE(two.out, cleared.out);
}

TEST(Command, StatsGoToStandardError) {
  const Result result = generate({"-p", "hello", "-p", "hello there", "--max-tokens", "5", "--stats"});
  EXPECT_EQ(result.code, 0);
  for (const char* word : {"first token", "prefill", "decode", "matrix products", "KV pages"})
    EXPECT_NE(result.err.find(word), std::string::npos) << word;
  for (const std::string& line : lines_of(result.err)) EXPECT_LE(line.size(), 80u) << line;
}

TEST(Command, DemoInAPipePrintsTheAnswersAlone) {
  const Result result = fulmen({"demo", "-m", model(), "--max-tokens", "12", "--threads", "2"});
  EXPECT_EQ(result.code, 0) << result.err;
  size_t headings = 0;
  for (const std::string& line : lines_of(result.out)) headings += line.rfind("> ", 0) == 0;
  EXPECT_GE(headings, 6u);
  EXPECT_EQ(result.out.find('\x1b'), std::string::npos);
  EXPECT_EQ(result.out.find("KV pages"), std::string::npos);
  EXPECT_NE(result.err.find("held once for 6"), std::string::npos) << result.err;
}

TEST(Command, TheModelIsFoundByVariable) {
  const Result found = run({.arguments = {"generate", "-p", "x", "--max-tokens", "2"},
                            .input = "",
                            .variables = {"FULMEN_MODEL=" + model()}});
  EXPECT_EQ(found.code, 0) << found.err;
}

TEST(Command, FullDisk) {
  if (access("/dev/full", W_OK) != 0) GTEST_SKIP() << "no /dev/full";
  const std::string command = std::string(FULMEN_COMMAND) + " generate -m " + model() +
                              " -p hello --max-tokens 5 > /dev/full 2> /dev/null";
  EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 5);
}

std::string written(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + name;
  std::ofstream(path) << text;
  return path;
}

TEST(Command, PrepareListsWhatAModelNeeds) {
  const std::string config = written("config.json", R"({"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "intermediate_size": 14336})");
  const std::string cache = testing::TempDir() + "fulmen-prepare-cache";
  const Result of_config = fulmen({"prepare", "--target", "sm_90a", "--list", "--json", "--cache", cache, "--model", config});
  ASSERT_EQ(of_config.code, 0) << of_config.err;
  const Json rows = Json::parse(of_config.out);
  std::map<std::string, int> kernels;
  for (const Json& row : rows) {
    ++kernels[row["kernel"].get<std::string>()];
    EXPECT_FALSE(row["cached"].get<bool>());
    EXPECT_EQ(row["sources"].get<std::string>().size(), 16u);
  }
  for (const char* kernel : {"attend_sm80", "plan_attention", "rope_append", "rms_norm", "linear", "act_and_mul", "sample"})
    EXPECT_GE(kernels[kernel], 1) << kernel;
  EXPECT_EQ(kernels["softmax"], 0);
  const Result all = fulmen({"prepare", "--target", "sm_90a", "--list", "--json", "--cache", cache});
  EXPECT_GT(Json::parse(all.out).size(), 2 * rows.size());

  const std::string specs = written("specs.json", R"([{"op": "rms_norm", "dtype": "bf16"},
    {"op": "attention", "dtype": "bf16", "head_dim": 64, "max_rows": 4, "max_requests": 4, "max_qo_len": 1}])");
  const Result of_specs = fulmen({"prepare", "--target", "sm_80", "--list", "--cache", cache, "--specs", specs});
  ASSERT_EQ(of_specs.code, 0) << of_specs.err;
  EXPECT_NE(of_specs.out.find("plan_attention"), std::string::npos) << of_specs.out;
  EXPECT_EQ(of_specs.out.find("act_and_mul"), std::string::npos) << of_specs.out;
}

TEST(Command, PrepareRefusesWhatItCannotRead) {
  const auto refused = [](const Result& result, int code, const char* text) {
    EXPECT_EQ(result.code, code) << result.err;
    EXPECT_NE(result.err.find(text), std::string::npos) << result.err;
  };
  refused(fulmen({"prepare", "--target", "sm_75", "--list"}), 3, "sm_90a");
  refused(fulmen({"prepare", "--target", "sm_90a", "--specs", "/nowhere.json"}), 3, "/nowhere.json");
  refused(fulmen({"prepare", "--target", "sm_90a", "--specs", written("op.json", R"([{"op": "fly"}])")}), 3, "fly");
  refused(fulmen({"prepare", "--target", "sm_90a", "--specs", written("dtype.json", R"([{"op": "rope", "dtype": "i8"}])")}), 3, "i8");
  refused(fulmen({"prepare", "--target", "sm_90a", "--model", written("config2.json", "{}")}), 3, "num_hidden_layers");
}

TEST(Command, InfoIsJson) {
  const Result result = fulmen({"info"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(Json::parse(result.out).is_object());
}

}  // namespace
}  // namespace fulmen
