// `fulmen generate`: prompts in, answers out, as one continuous batch.
#include "exit_codes.hpp"
#include "options.hpp"
#include "ordered_output.hpp"
#include "prompts.hpp"
#include "report.hpp"
#include "terminal.hpp"

#include "engine/input_error.hpp"

#include <fmt/format.h>

#include <unistd.h>

#include <cstdio>

namespace fulmen::command {
namespace {

/// A prompt that can't become a request is answered with its error; the others run.
engine::Request& submit(engine::Engine& engine, const std::optional<engine::ChatTemplate>& form, const Prompt& prompt,
                        bool special) {
  engine::RequestOptions request = prompt.options;
  std::string error = prompt.error;
  if (error.empty()) {
    try {
      request.prompt = encode_prompt(engine, form, prompt, special);
    } catch (const engine::InputError& e) {
      error = e.what();
    }
  }
  engine::Request& submitted = engine.submit(std::move(request));
  if (!error.empty()) submitted.error = error;
  return submitted;
}

}  // namespace

int run_generate(const GenerateOptions& options) {
  std::vector<Prompt> prompts = read_prompts(options);
  if (prompts.empty()) throw engine::InputError("no prompt: give one with -p, -f FILE or - for standard input");
  const auto engine = make_engine(options.model);
  const std::optional<engine::ChatTemplate> form = choose_template(options, *engine);
  if (!form && !options.system.empty())
    throw engine::InputError("--system needs a chat template: this model has none, name one with --chat-template");

  const bool several = prompts.size() > 1;
  OrderedOutput output(*engine, options.json ? OrderedOutput::Form::kJson : OrderedOutput::Form::kText, several);
  std::vector<engine::Request*> requests;
  for (Prompt& prompt : prompts) {
    if (!prompt.system && !options.system.empty()) prompt.system = options.system;
    requests.push_back(&submit(*engine, form, prompt, options.special));
    output.add(prompt.text, requests.back());
  }

  bool failed = false;
  for (size_t i = 0; i < requests.size(); ++i) {
    if (requests[i]->finish != engine::Finish::kError) continue;
    failed = true;
    error_line(several ? fmt::format("prompt {}: {}", i + 1, requests[i]->error) : requests[i]->error);
  }
  do {
    output.update();
  } while (!interrupted() && engine->step());
  for (size_t i = 0; i < requests.size(); ++i) {
    if (interrupted()) engine->interrupt(*requests[i]);
    if (!failed && requests[i]->finish == engine::Finish::kError) {  // while it ran
      failed = true;
      error_line(fmt::format("prompt {}: {}", i + 1, requests[i]->error));
    }
  }
  output.update();
  if (options.stats)
    fmt::print(stderr, "{}", format_table(batch_report(*engine, {requests.begin(), requests.end()})));
  if (interrupted()) return kInterrupted;
  return failed ? kSomeFailed : kSuccess;
}

int run_chat(const GenerateOptions& options) {
  const auto engine = make_engine(options.model);
  const std::optional<engine::ChatTemplate> form = choose_template(options, *engine);
  if (!form) throw engine::InputError("--chat needs a chat template: name one with --chat-template");
  std::vector<engine::ChatMessage> beginning;
  if (!options.system.empty()) beginning.push_back({"system", options.system});
  std::vector<engine::ChatMessage> history = beginning;
  const bool asks = is_terminal(STDIN_FILENO) && is_terminal(STDOUT_FILENO);
  if (asks) note("a line is a message; /clear forgets the conversation, /exit or Ctrl-D ends it");

  for (std::string line;;) {
    if (asks) {
      write_result("> ");
      flush_results();
    }
    line.clear();
    int c;
    while ((c = std::fgetc(stdin)) != EOF && c != '\n') line.push_back(static_cast<char>(c));
    if (interrupted()) return kInterrupted;
    if (line == "/exit" || (c == EOF && line.empty())) break;
    if (line == "/clear") {
      history = beginning;
      continue;
    }
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;

    history.push_back({"user", line});
    engine::RequestOptions request;
    request.max_tokens = options.max_tokens;
    request.sampling = options.sampling;
    request.stop = options.stop;
    std::string error;
    try {
      request.prompt = encode_messages(*engine, *form, history, options.special);
    } catch (const engine::InputError& e) {
      error = e.what();
    }
    engine::Request& answer = engine->submit(std::move(request));
    if (error.empty() && answer.finish == engine::Finish::kError) error = answer.error;
    if (!error.empty()) {
      error_line(error + (history.size() > beginning.size() + 1 ? " (/clear forgets the conversation)" : ""));
      history.pop_back();
      engine->forget(answer);
      continue;
    }
    OrderedOutput output(*engine, OrderedOutput::Form::kText, false);
    output.add(line, &answer);
    while (!answer.done() && !interrupted() && engine->step()) output.update();
    if (interrupted()) engine->interrupt(answer);
    output.update();
    history.push_back({"assistant", answer.text});
    engine->forget(answer);
    if (interrupted()) {
      if (!asks) return kInterrupted;
      clear_interrupt();  // on a terminal Ctrl-C ends the answer, not the conversation
      note("stopped");
    }
  }
  if (asks) write_result("\n");
  flush_results();
  return kSuccess;
}

}  // namespace fulmen::command
