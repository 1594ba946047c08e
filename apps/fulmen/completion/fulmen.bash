# bash completion of fulmen
_fulmen() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} options
  COMPREPLY=()
  case $previous in
    --device) COMPREPLY=($(compgen -W "cpu cuda auto" -- "$current")); return ;;
    --format) COMPREPLY=($(compgen -W "lines jsonl text auto" -- "$current")); return ;;
    --kv-type) COMPREPLY=($(compgen -W "f16 bf16 f32" -- "$current")); return ;;
    --log-level) COMPREPLY=($(compgen -W "error warning info debug" -- "$current")); return ;;
    --dtype) COMPREPLY=($(compgen -W "f32 f16 bf16" -- "$current")); return ;;
    --chat-template) COMPREPLY=($(compgen -W "auto none chatml smollm2 qwen2 qwen2.5 llama3 llama3.1 zephyr" -- "$current")); return ;;
    --target) COMPREPLY=($(compgen -W "cpu cuda sm_80 sm_86 sm_89 sm_90a sm_100 sm_120" -- "$current")); return ;;
    -m | --model | -f | --file | --specs | --nvrtc) COMPREPLY=($(compgen -f -- "$current")); return ;;
  esac
  case ${COMP_WORDS[1]} in
    generate)
      options="--prompt --file --format --system --chat --chat-template --special --max-tokens --temperature
               --top-k --top-p --min-p --seed --stop --ignore-end --json --stats --model --device --threads
               --context --batch --chunk --pages --kv-memory --page-size --kv-type --invariant --no-prefix-sharing
               --no-mmap --quiet --log-level --help" ;;
    demo)
      options="--max-tokens --model --device --threads --context --batch --chunk --pages --kv-memory --page-size
               --kv-type --invariant --no-prefix-sharing --no-mmap --quiet --log-level --help" ;;
    bench)
      options="--json --quick --part --model --device --threads --context --batch --chunk --pages --kv-memory --page-size
               --kv-type --invariant --no-prefix-sharing --no-mmap --quiet --log-level --help" ;;
    prepare)
      options="--target --model --specs --cache --nvrtc --list --json --context --batch --chunk --kv-type --invariant
               --quiet --log-level --help" ;;
    info)
      options="--quiet --log-level --help" ;;
    explain)
      options="--target --op --dtype --head-dim --qo-heads --kv-heads --requests --rows --kv-len --invariant
               --quiet --log-level --help" ;;
    *) options="generate demo bench prepare info explain --version --help" ;;
  esac
  if [[ $current == -* || $COMP_CWORD -eq 1 ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
  else
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}
complete -o filenames -F _fulmen fulmen
