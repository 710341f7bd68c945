//! The one table of what a body may hold: every member of the two endpoints, its type, and which kind of
//! upstream knows it. It decides what is judged, lowered, passed or unknown, and holds no code but builders.
//! Read by `walk`.
//!
//! Left out on purpose, so dropped unless the operator says `forward`, and some not even then ([`NEVER`]):
//! what makes an upstream fetch or trust an address, what runs the caller's code (templates, logits
//! processors), what generates beyond the caps (beam search), what jumps its queue (`priority`) and what it
//! bills apart from tokens (`web_search_options`).

/// Bit of the chat endpoint.
pub(super) const CHAT: u8 = 1;
/// Bit of the completions endpoint.
pub(super) const COMPLETIONS: u8 = 2;

pub(super) const GUAN: u8 = 1;
pub(super) const VLLM: u8 = 2;
pub(super) const SGLANG: u8 = 4;
pub(super) const LLAMA: u8 = 8;
pub(super) const OPENAI: u8 = 16;
const EVERY: u8 = 31;
/// The servers that add sampling members of their own.
const OWN: u8 = GUAN | VLLM | SGLANG | LLAMA;
/// Known so that it is lowered where an operator forwards unknown members; no dialect is said to have it.
const NONE: u8 = 0;

/// The type of a member and what happens to it on the way out.
#[derive(Debug)]
pub(super) enum Shape {
    /// `true` or `false`.
    Bool,
    /// Any string.
    Text,
    /// One of these strings.
    Word(&'static [&'static str]),
    /// The member that chose the variant of a [`Shape::Tagged`]; judged there.
    Tag,
    /// An integer in this range, ends included.
    Int(i128, i128),
    /// A number in this range, ends included.
    Num(f64, f64),
    /// The public name of the model; replaced on the way out.
    Model,
    /// An output cap: an integer of at least 1, lowered on the way out.
    Cap,
    /// An output floor: an integer of at least 0, lowered on the way out.
    Floor,
    /// An object that passes whole.
    Free,
    /// An object whose values are numbers.
    Numbers,
    /// An object whose values are strings.
    Strings,
    /// An object with these members.
    Object(&'static [Field]),
    /// An object whose members depend on the string under this name.
    Tagged(&'static str, &'static [Variant]),
    /// An array: shape of the elements, fewest, most.
    List(&'static Self, usize, usize),
    /// The first of these that takes this kind of value.
    Either(&'static [Self]),
    /// The messages of a chat.
    Messages,
    /// The prompt of a completion.
    Prompt,
    /// `stream_options`: judged here, written anew on the way out.
    StreamOptions,
    /// The address or data of an image: counted as an image, not as text.
    Image,
    /// Data whose tokens are far fewer than its bytes, such as sound.
    Sound,
}

/// A tag value and the members that come with it.
pub(super) type Variant = (&'static str, &'static [Field]);

/// One member.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) required: bool,
    /// Its text never reaches the model, so it doesn't count as input.
    pub(super) quiet: bool,
    pub(super) endpoints: u8,
    pub(super) dialects: u8,
}

const fn field(name: &'static str, shape: Shape) -> Field {
    Field {
        name,
        shape,
        required: false,
        quiet: false,
        endpoints: CHAT | COMPLETIONS,
        dialects: EVERY,
    }
}

const fn need(name: &'static str, shape: Shape) -> Field {
    field(name, shape).required()
}

/// A member that only some dialects have.
const fn extra(name: &'static str, dialects: u8, shape: Shape) -> Field {
    let mut field = field(name, shape).quiet();
    field.dialects = dialects;
    field
}

impl Field {
    const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    const fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    const fn loud(mut self) -> Self {
        self.quiet = false;
        self
    }

    const fn on(mut self, endpoints: u8) -> Self {
        self.endpoints = endpoints;
        self
    }

    /// Every kind of upstream is taken to know it.
    pub(super) const fn is_common(&self) -> bool {
        self.dialects == EVERY
    }
}

/// Longest list of strings or token ids outside messages and prompts.
const LONG: usize = 4096;
const U32: i128 = u32::MAX as i128;
const I32: i128 = i32::MAX as i128;
const I64: i128 = i64::MAX as i128;

const TEXTS: Shape = Shape::List(&Shape::Text, 0, LONG);
const TOKENS: Shape = Shape::List(&Shape::Int(0, U32), 0, LONG);
const STOP: Shape = Shape::Either(&[Shape::Text, TEXTS]);
/// Bounds for sampling numbers that have none by nature: what any engine's float holds.
const WIDE: Shape = Shape::Num(-1e6, 1e6);
const UNIT: Shape = Shape::Num(0.0, 1.0);
const POSITIVE: Shape = Shape::Num(0.0, 1e6);

/// Members of a request. A name may stand here twice for different endpoints or dialects.
pub(super) static REQUEST: &[Field] = &[
    need("model", Shape::Model).quiet(),
    need("messages", Shape::Messages).on(CHAT),
    need("prompt", Shape::Prompt).on(COMPLETIONS),
    field("stream", Shape::Bool),
    field("stream_options", Shape::StreamOptions),
    field("max_tokens", Shape::Cap),
    field("max_completion_tokens", Shape::Cap).on(CHAT),
    field("n", Shape::Int(1, U32)),
    field("best_of", Shape::Int(1, U32)).on(COMPLETIONS),
    field("temperature", Shape::Num(0.0, 2.0)),
    field("top_p", UNIT),
    field("frequency_penalty", Shape::Num(-2.0, 2.0)),
    field("presence_penalty", Shape::Num(-2.0, 2.0)),
    field("seed", Shape::Int(-I64 - 1, I64)),
    field("stop", STOP).quiet(),
    field("logit_bias", Shape::Numbers).quiet(),
    field("logprobs", Shape::Bool).on(CHAT),
    field("logprobs", Shape::Int(0, U32)).on(COMPLETIONS),
    field("top_logprobs", Shape::Int(0, U32)).on(CHAT),
    field("echo", Shape::Bool).on(COMPLETIONS),
    field("suffix", Shape::Text).on(COMPLETIONS),
    field("user", Shape::Text).quiet(),
    field("tools", Shape::List(&Shape::Tagged("type", TOOL), 0, LONG)).on(CHAT),
    field(
        "tool_choice",
        Shape::Either(&[TOOL_WORD, Shape::Tagged("type", TOOL_CHOICE)]),
    )
    .on(CHAT),
    field("parallel_tool_calls", Shape::Bool).on(CHAT),
    field("functions", Shape::List(&Shape::Object(FUNCTION), 0, LONG)).on(CHAT),
    field(
        "function_call",
        Shape::Either(&[TOOL_WORD, Shape::Object(NAMED)]),
    )
    .on(CHAT),
    field("response_format", Shape::Tagged("type", RESPONSE_FORMAT)).on(CHAT),
    field("reasoning_effort", Shape::Text).on(CHAT).quiet(),
    field("verbosity", Shape::Text).on(CHAT).quiet(),
    field("modalities", TEXTS).on(CHAT).quiet(),
    field("audio", Shape::Object(SOUND_OUT)).on(CHAT).quiet(),
    field("prediction", Shape::Object(PREDICTION)).on(CHAT),
    field("metadata", Shape::Strings).on(CHAT).quiet(),
    field("store", Shape::Bool).on(CHAT),
    field("service_tier", Shape::Text).on(CHAT).quiet(),
    field("safety_identifier", Shape::Text).on(CHAT).quiet(),
    field("prompt_cache_key", Shape::Text).on(CHAT).quiet(),
    field("prompt_cache_retention", Shape::Text)
        .on(CHAT)
        .quiet(),
    // Sampling that several servers share.
    extra("top_k", OWN, Shape::Int(-1, I32)),
    extra("min_p", OWN, UNIT),
    extra("repetition_penalty", GUAN | VLLM | SGLANG, POSITIVE),
    extra("min_tokens", VLLM | SGLANG, Shape::Floor),
    extra("ignore_eos", VLLM | SGLANG | LLAMA, Shape::Bool),
    extra("stop_token_ids", VLLM | SGLANG, TOKENS),
    extra("skip_special_tokens", VLLM | SGLANG, Shape::Bool),
    extra("continue_final_message", VLLM | SGLANG, Shape::Bool).on(CHAT),
    extra(
        "chat_template_kwargs",
        VLLM | SGLANG | LLAMA,
        Shape::Object(TEMPLATE_ARGUMENTS),
    )
    .on(CHAT)
    .loud(),
    extra(
        "response_format",
        VLLM | SGLANG | LLAMA,
        Shape::Tagged("type", RESPONSE_FORMAT),
    )
    .on(COMPLETIONS)
    .loud(),
    // vLLM
    extra("length_penalty", VLLM, WIDE),
    extra("include_stop_str_in_output", VLLM, Shape::Bool),
    extra("spaces_between_special_tokens", VLLM, Shape::Bool),
    extra("add_special_tokens", VLLM, Shape::Bool),
    extra("add_generation_prompt", VLLM, Shape::Bool).on(CHAT),
    extra("echo", VLLM, Shape::Bool).on(CHAT),
    extra("include_reasoning", VLLM, Shape::Bool).on(CHAT),
    extra("truncate_prompt_tokens", VLLM, Shape::Int(1, U32)),
    extra("allowed_token_ids", VLLM, TOKENS),
    extra("bad_words", VLLM, TEXTS),
    extra("documents", VLLM, Shape::List(&Shape::Free, 0, LONG))
        .on(CHAT)
        .loud(),
    extra(
        "guided_json",
        VLLM,
        Shape::Either(&[Shape::Text, Shape::Free]),
    ),
    extra("guided_regex", VLLM, Shape::Text),
    extra("guided_choice", VLLM, TEXTS),
    extra("guided_grammar", VLLM, Shape::Text),
    extra("guided_whitespace_pattern", VLLM, Shape::Text),
    extra("structured_outputs", VLLM, Shape::Free),
    extra("return_token_ids", VLLM, Shape::Bool),
    extra("return_tokens_as_token_ids", VLLM, Shape::Bool),
    extra("cache_salt", VLLM, Shape::Text),
    // SGLang
    extra("regex", SGLANG, Shape::Text),
    extra("ebnf", SGLANG, Shape::Text),
    extra("json_schema", SGLANG, Shape::Text).on(COMPLETIONS),
    extra("no_stop_trim", SGLANG, Shape::Bool),
    extra("separate_reasoning", SGLANG, Shape::Bool).on(CHAT),
    extra("stream_reasoning", SGLANG, Shape::Bool).on(CHAT),
    // llama-server
    extra("n_predict", LLAMA, Shape::Cap),
    extra("cache_prompt", LLAMA, Shape::Bool),
    extra("grammar", LLAMA, Shape::Text),
    extra("json_schema", LLAMA, Shape::Free),
    extra("repeat_penalty", LLAMA, POSITIVE),
    extra("repeat_last_n", LLAMA, Shape::Int(-1, I32)),
    extra("typical_p", LLAMA, UNIT),
    extra("top_n_sigma", LLAMA, WIDE),
    extra("dynatemp_range", LLAMA, POSITIVE),
    extra("dynatemp_exponent", LLAMA, POSITIVE),
    extra("xtc_probability", LLAMA, UNIT),
    extra("xtc_threshold", LLAMA, UNIT),
    extra("dry_multiplier", LLAMA, POSITIVE),
    extra("dry_base", LLAMA, POSITIVE),
    extra("dry_allowed_length", LLAMA, Shape::Int(0, I32)),
    extra("dry_penalty_last_n", LLAMA, Shape::Int(-1, I32)),
    extra("dry_sequence_breakers", LLAMA, TEXTS),
    extra("mirostat", LLAMA, Shape::Int(0, 2)),
    extra("mirostat_tau", LLAMA, POSITIVE),
    extra("mirostat_eta", LLAMA, POSITIVE),
    extra("samplers", LLAMA, STOP),
    extra("min_keep", LLAMA, Shape::Int(0, I32)),
    extra("n_keep", LLAMA, Shape::Int(-1, I32)),
    extra("n_indent", LLAMA, Shape::Int(0, I32)),
    extra("n_probs", LLAMA, Shape::Int(0, 20)),
    extra("post_sampling_probs", LLAMA, Shape::Bool),
    extra("return_tokens", LLAMA, Shape::Bool),
    extra("timings_per_token", LLAMA, Shape::Bool),
    extra("t_max_predict_ms", LLAMA, Shape::Int(1, I32)),
    extra("reasoning_format", LLAMA, Shape::Text).on(CHAT),
    extra("parse_tool_calls", LLAMA, Shape::Bool).on(CHAT),
    // Caps under other names: nobody is said to know them, but they are lowered where unknown members pass.
    extra("max_completion_tokens", NONE, Shape::Cap).on(COMPLETIONS),
    extra("max_new_tokens", NONE, Shape::Cap),
    extra("max_output_tokens", NONE, Shape::Cap),
    extra("max_gen_len", NONE, Shape::Cap),
    extra("max_length", NONE, Shape::Cap),
    extra("num_predict", NONE, Shape::Cap),
    extra("min_new_tokens", NONE, Shape::Floor),
    extra("min_length", NONE, Shape::Floor),
];

/// Top-level members that never pass, whatever the operator says of unknown ones: each would generate beyond
/// the caps, run what the caller sends, or name addresses, slots and files of the upstream. Sorted.
pub(super) const NEVER: &[&str] = &[
    "beam_width",
    "best_of",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "chat_template",
    "chat_template_kwargs",
    "custom_logit_processor",
    "custom_params",
    "data_parallel_rank",
    "extra_body",
    "id_slot",
    "input_embeds",
    "input_ids",
    "kv_transfer_params",
    "logits_processors",
    "lora",
    "lora_path",
    "media_io_kwargs",
    "messages",
    "mm_processor_kwargs",
    "models",
    "n_cmpl",
    "n_parallel",
    "num_beams",
    "options",
    "parameters",
    "priority",
    "prompt",
    "prompt_embeds",
    "prompt_logprobs",
    "provider",
    "request_id",
    "return_hidden_states",
    "rid",
    "route",
    "sampling_params",
    "session_params",
    "speculative",
    "speculative.n_max",
    "use_beam_search",
    "vllm_xargs",
    "web_search_options",
];

/// Who may speak, and what each may say. `assistant` needs one of its members; `walk` sees to it.
pub(super) static MESSAGE: &[Variant] = &[
    ("system", INSTRUCTION),
    ("developer", INSTRUCTION),
    ("user", USER),
    ("assistant", ASSISTANT),
    ("tool", TOOL_ANSWER),
    ("function", FUNCTION_ANSWER),
];

const TEXT_CONTENT: Shape = Shape::Either(&[
    Shape::Text,
    Shape::List(&Shape::Tagged("type", TEXT_PART), 1, LONG),
]);
const USER_CONTENT: Shape = Shape::Either(&[
    Shape::Text,
    Shape::List(&Shape::Tagged("type", PART), 1, LONG),
]);
const OWN_CONTENT: Shape = Shape::Either(&[
    Shape::Text,
    Shape::List(&Shape::Tagged("type", OWN_PART), 1, LONG),
]);

const INSTRUCTION: &[Field] = &[
    need("role", Shape::Tag),
    need("content", TEXT_CONTENT),
    field("name", Shape::Text),
];
const USER: &[Field] = &[
    need("role", Shape::Tag),
    need("content", USER_CONTENT),
    field("name", Shape::Text),
];
const ASSISTANT: &[Field] = &[
    need("role", Shape::Tag),
    field("content", OWN_CONTENT),
    field("name", Shape::Text),
    field("refusal", Shape::Text),
    field(
        "tool_calls",
        Shape::List(&Shape::Object(TOOL_CALL), 0, LONG),
    ),
    field("function_call", Shape::Object(CALLED)),
    field("audio", Shape::Object(SOUND_ID)),
    extra("reasoning_content", OWN, Shape::Text).loud(),
    extra("reasoning", OWN, Shape::Text).loud(),
];
const TOOL_ANSWER: &[Field] = &[
    need("role", Shape::Tag),
    // vLLM and llama-server show pictures that a tool returned; the API itself takes text only.
    need("content", USER_CONTENT),
    need("tool_call_id", Shape::Text),
    field("name", Shape::Text),
];
const FUNCTION_ANSWER: &[Field] = &[
    need("role", Shape::Tag),
    field("content", Shape::Text),
    need("name", Shape::Text),
];

const PART: &[Variant] = &[
    ("text", PART_TEXT),
    (
        "image_url",
        &[
            need("type", Shape::Tag),
            need("image_url", Shape::Object(IMAGE_URL)),
        ],
    ),
    (
        "input_audio",
        &[
            need("type", Shape::Tag),
            need("input_audio", Shape::Object(SOUND_IN)),
        ],
    ),
    (
        "file",
        &[need("type", Shape::Tag), need("file", Shape::Object(FILE))],
    ),
    ("refusal", PART_REFUSAL),
];
const TEXT_PART: &[Variant] = &[("text", PART_TEXT)];
const OWN_PART: &[Variant] = &[("text", PART_TEXT), ("refusal", PART_REFUSAL)];
const PART_TEXT: &[Field] = &[need("type", Shape::Tag), need("text", Shape::Text)];
const PART_REFUSAL: &[Field] = &[need("type", Shape::Tag), need("refusal", Shape::Text)];
/// Switches of the usual templates. No others: some servers take a whole template, or their own settings, from here.
const TEMPLATE_ARGUMENTS: &[Field] = &[
    field("enable_thinking", Shape::Bool),
    field("thinking", Shape::Bool),
];
const IMAGE_URL: &[Field] = &[
    need("url", Shape::Image),
    field("detail", Shape::Word(&["auto", "low", "high"])),
];
const SOUND_IN: &[Field] = &[
    need("data", Shape::Sound),
    need("format", Shape::Text).quiet(),
];
const SOUND_OUT: &[Field] = &[
    need("format", Shape::Text),
    need(
        "voice",
        Shape::Either(&[Shape::Text, Shape::Object(&[need("id", Shape::Text)])]),
    ),
];
const SOUND_ID: &[Field] = &[need("id", Shape::Text)];
const FILE: &[Field] = &[
    field("file_data", Shape::Text),
    field("file_id", Shape::Text),
    field("filename", Shape::Text),
];
const PREDICTION: &[Field] = &[
    need("type", Shape::Word(&["content"])),
    need("content", TEXT_CONTENT),
];

/// Some clients leave `type` out of a call they send back, so it isn't needed.
const TOOL_CALL: &[Field] = &[
    need("id", Shape::Text),
    field("type", Shape::Word(&["function", "custom"])),
    field("function", Shape::Object(CALLED)),
    field(
        "custom",
        Shape::Object(&[need("name", Shape::Text), need("input", Shape::Text)]),
    ),
];
const CALLED: &[Field] = &[need("name", Shape::Text), need("arguments", Shape::Text)];

const TOOL: &[Variant] = &[
    (
        "function",
        &[
            need("type", Shape::Tag),
            need("function", Shape::Object(FUNCTION)),
        ],
    ),
    (
        "custom",
        &[
            need("type", Shape::Tag),
            need("custom", Shape::Object(CUSTOM)),
        ],
    ),
];
const FUNCTION: &[Field] = &[
    need("name", Shape::Text),
    field("description", Shape::Text),
    field("parameters", Shape::Free),
    field("strict", Shape::Bool),
];
const CUSTOM: &[Field] = &[
    need("name", Shape::Text),
    field("description", Shape::Text),
    field("format", Shape::Free),
];
const TOOL_WORD: Shape = Shape::Word(&["none", "auto", "required"]);
const NAMED: &[Field] = &[need("name", Shape::Text)];
const TOOL_CHOICE: &[Variant] = &[
    (
        "function",
        &[
            need("type", Shape::Tag),
            need("function", Shape::Object(NAMED)),
        ],
    ),
    (
        "custom",
        &[
            need("type", Shape::Tag),
            need("custom", Shape::Object(NAMED)),
        ],
    ),
    (
        "allowed_tools",
        &[
            need("type", Shape::Tag),
            need("allowed_tools", Shape::Object(ALLOWED)),
        ],
    ),
];
const ALLOWED: &[Field] = &[
    need("mode", Shape::Word(&["auto", "required"])),
    need("tools", Shape::List(&Shape::Free, 0, LONG)),
];

const RESPONSE_FORMAT: &[Variant] = &[
    ("text", &[need("type", Shape::Tag)]),
    // llama-server takes the schema beside this type.
    (
        "json_object",
        &[
            need("type", Shape::Tag),
            extra("schema", LLAMA, Shape::Free).loud(),
        ],
    ),
    (
        "json_schema",
        &[
            need("type", Shape::Tag),
            need("json_schema", Shape::Object(JSON_SCHEMA)),
        ],
    ),
];
const JSON_SCHEMA: &[Field] = &[
    need("name", Shape::Text),
    field("description", Shape::Text),
    field("schema", Shape::Free),
    field("strict", Shape::Bool),
];

/// What a caller may write into `stream_options`; none of it is forwarded as written.
pub(super) const STREAM_OPTIONS: &[Field] = &[
    field("include_usage", Shape::Bool),
    field("include_obfuscation", Shape::Bool),
];
