"""The text of FlashInfer's own sink variant, recognised by its name: attention sinks are built in."""
attention_sink_decl = {backend: "struct AttentionSink;" for backend in ("fa2", "fa3")}
