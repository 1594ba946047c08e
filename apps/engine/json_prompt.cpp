#include "engine/json_prompt.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "engine/input_error.hpp"

namespace fulmen::engine {
namespace {

using Json = nlohmann::json;

double number(const Json& value, const char* key, double least, double most) {
  if (!value.is_number()) throw InputError(fmt::format("\"{}\": expected a number", key));
  const double number = value.get<double>();
  if (!(number >= least && number <= most))
    throw InputError(fmt::format("\"{}\": expected {} to {}, found {}", key, least, most, number));
  return number;
}

std::string text(const Json& value, const char* key) {
  if (!value.is_string()) throw InputError(fmt::format("\"{}\": expected a string", key));
  return value.get<std::string>();
}

void take_field(Prompt& prompt, const std::string& key, const Json& value) {
  constexpr double kMostTokens = 1 << 30;
  if (key == "prompt") {
    prompt.text = text(value, "prompt");
  } else if (key == "system") {
    prompt.system = text(value, "system");
  } else if (key == "max_tokens") {
    prompt.options.max_tokens = static_cast<int64_t>(number(value, "max_tokens", 1, kMostTokens));
  } else if (key == "temperature") {
    prompt.options.sampling.temperature = static_cast<float>(number(value, "temperature", 0, 100));
  } else if (key == "top_k") {
    prompt.options.sampling.top_k = static_cast<int32_t>(number(value, "top_k", 0, kMostTokens));
  } else if (key == "top_p") {
    prompt.options.sampling.top_p = static_cast<float>(number(value, "top_p", 0, 1));
  } else if (key == "min_p") {
    prompt.options.sampling.min_p = static_cast<float>(number(value, "min_p", 0, 1));
  } else if (key == "seed") {
    if (!value.is_number_unsigned()) throw InputError("\"seed\": expected a whole number from 0");
    prompt.options.sampling.seed = value.get<uint64_t>();
  } else if (key == "stop") {
    prompt.options.stop.clear();
    if (value.is_string()) prompt.options.stop.push_back(value.get<std::string>());
    else if (value.is_array())
      for (const Json& stop : value) prompt.options.stop.push_back(text(stop, "stop"));
    else throw InputError("\"stop\": expected a string or a list of strings");
  } else if (key == "messages") {
    if (!value.is_array() || value.empty()) throw InputError("\"messages\": expected a list of messages");
    for (const Json& message : value) {
      if (!message.is_object() || !message.contains("role") || !message.contains("content"))
        throw InputError("\"messages\": expected objects with \"role\" and \"content\"");
      prompt.messages.push_back({text(message["role"], "role"), text(message["content"], "content")});
    }
    prompt.text = prompt.messages.back().content;
  } else {
    throw InputError(fmt::format("unknown key {}", engine::quoted(key)));
  }
}

}  // namespace

Prompt parse_json_prompt(std::string_view line, const RequestOptions& defaults) {
  Prompt prompt;
  prompt.options = defaults;
  try {
    // A line of brackets alone would nest as deep as it is long.
    constexpr int kMostNesting = 8;
    const Json::parser_callback_t shallow = [](int depth, Json::parse_event_t, Json&) {
      if (depth > kMostNesting) throw InputError("JSON is nested too deeply");
      return true;
    };
    const Json object = Json::parse(line, shallow);
    if (!object.is_object()) throw InputError("expected a JSON object");
    if (object.contains("prompt") == object.contains("messages"))
      throw InputError("expected either \"prompt\" or \"messages\"");
    for (const auto& [key, value] : object.items()) take_field(prompt, key, value);
  } catch (const InputError& error) {
    prompt.error = error.what();
  } catch (const Json::exception& error) {
    prompt.error = fmt::format("not JSON: {}", engine::quoted(error.what()));
  }
  return prompt;
}

}  // namespace fulmen::engine
