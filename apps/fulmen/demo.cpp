// `fulmen demo`: six chat requests that share a system prompt, served as one continuous batch.
#include "exit_codes.hpp"
#include "live_view.hpp"
#include "options.hpp"
#include "ordered_output.hpp"
#include "prompts.hpp"
#include "report.hpp"
#include "terminal.hpp"

#include "engine/input_error.hpp"

#include <fmt/format.h>

#include <errno.h>
#include <unistd.h>

#include <cstdio>

namespace fulmen::command {
namespace {

constexpr const char* kSystem =
    "You are a helpful assistant. Answer in plain words and in at most three short sentences. "
    "Do not repeat the question, and stop when the answer is complete.";

const std::vector<std::string> kPrompts = {
    "What is a glacier?",
    "What is the capital of France?",
    "Explain what a computer program is to a child.",
    "Why do we sleep?",
    "What is the difference between weather and climate?",
    "Write one sentence about the sea.",
};

// Lines to paste: the command is named as it was called, since `make demo` installs nothing.
std::string try_next() {
  const std::string command = program_invocation_name;
  return fmt::format(
      "Try next\n"
      "  {0} generate -p \"Why is the sky blue?\"\n"
      "  {0} generate --chat                  a conversation\n"
      "  {0} generate -f prompts.txt --json   an object a prompt\n"
      "  {0} bench                            measured speeds\n",
      command);
}

}  // namespace

int run_demo(const DemoOptions& options) {
  const bool live = wants_live_view();
  if (live) {
    fmt::print("loading the model ...\r");
    std::fflush(stdout);
  }
  const auto engine = make_engine(options.model);
  const GenerateOptions defaults;
  const auto form = choose_template(defaults, *engine);
  if (!form) throw engine::InputError("the demo needs a model with a chat template");

  std::vector<engine::Request*> requests;
  for (const std::string& prompt : kPrompts) {
    engine::RequestOptions request;
    request.prompt = encode_messages(*engine, *form, {{"system", kSystem}, {"user", prompt}}, false);
    request.max_tokens = options.max_tokens;
    requests.push_back(&engine->submit(std::move(request)));
  }
  const std::vector<const engine::Request*> views(requests.begin(), requests.end());

  const auto start = engine::Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(engine::Clock::now() - start).count(); };
  OrderedOutput output(*engine, OrderedOutput::Form::kText, /*headings=*/true);
  for (size_t i = 0; i < kPrompts.size(); ++i) output.add(kPrompts[i], requests[i]);
  {
    LiveView view;
    double last_frame = -1;
    do {
      if (!live) {
        output.update();
      } else if (elapsed() - last_frame > 0.08) {
        view.show(draw_frame(*engine, views, kPrompts, elapsed(), terminal_width()));
        last_frame = elapsed();
      }
    } while (!interrupted() && engine->step());
  }
  for (engine::Request* request : requests)
    if (interrupted()) engine->interrupt(*request);
  output.update();

  // In a pipe standard output holds the answers alone.
  const std::string table = "\n" + format_table(batch_report(*engine, views)) + "\n" + try_next();
  std::fwrite(table.data(), 1, table.size(), is_terminal(STDOUT_FILENO) ? stdout : stderr);
  flush_results();
  return interrupted() ? kInterrupted : kSuccess;
}

}  // namespace fulmen::command
