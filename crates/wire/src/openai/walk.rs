//! Walks a body along the table of `members`: judges every known member's type and, when it writes, copies what
//! is accepted with the changes spliced in. It decides what an unknown member's fate is. Its depth is the
//! table's, never the caller's. Called by `openai::Request`.

mod judge;

use super::bound::{as_u64, whole};
use super::members::{
    self, CHAT, COMPLETIONS, Field, GUAN, LLAMA, NEVER, OPENAI, SGLANG, Shape, VLLM, Variant,
};
use super::{BodyFault, Dialect, Endpoint, UnknownFields};
use crate::json::{Kind, Member, Value, shorten, write_string};
use judge::{kind_name, listed};

/// Most names listed in `x-guan-dropped`.
const DROPPED_MAX: usize = 32;
/// Longest public model name, in bytes.
const MODEL_MAX: usize = 256;

/// What goes out in place of any `stream_options`: metering needs the chunk, nobody may turn it off.
const INCLUDE_USAGE: &[u8] = b"{\"include_usage\":true}";

/// What the walk counts on its way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Upper bound of the tokens in the text of known members.
    pub(super) text: u64,
    pub(super) images: u64,
}

/// What a writing walk needs to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Aim<'f> {
    pub(super) dialect: Dialect,
    pub(super) unknown: UnknownFields,
    pub(super) model: &'f str,
    pub(super) max_output: u64,
    pub(super) stream: bool,
}

pub(super) struct Walk<'f> {
    endpoint: Endpoint,
    /// None while only what every upstream knows is judged.
    aim: Option<Aim<'f>>,
    writing: bool,
    quiet: bool,
    capped: bool,
    path: Vec<Step>,
    pub(super) out: Vec<u8>,
    pub(super) dropped: Vec<String>,
    pub(super) tally: Tally,
}

#[derive(Clone, Copy)]
enum Step {
    Name(&'static str),
    Index(usize),
}

impl<'f> Walk<'f> {
    /// Judges the common members of `root` and counts.
    pub(super) fn judge(endpoint: Endpoint, root: Value<'_>) -> Result<Tally, BodyFault> {
        let mut walk = Self::new(endpoint, None);
        walk.request(root)?;
        Ok(walk.tally)
    }

    /// Judges `root` for one dialect too and writes what may go out when `write` says so.
    pub(super) fn forward(
        endpoint: Endpoint,
        root: Value<'_>,
        aim: Aim<'f>,
        write: bool,
    ) -> Result<Self, BodyFault> {
        let mut walk = Self::new(endpoint, Some(aim));
        walk.writing = write;
        if write {
            walk.out.reserve(root.raw().len().saturating_add(128));
        }
        walk.request(root)?;
        Ok(walk)
    }

    fn new(endpoint: Endpoint, aim: Option<Aim<'f>>) -> Self {
        Self {
            endpoint,
            aim,
            writing: false,
            quiet: false,
            capped: false,
            path: Vec::new(),
            out: Vec::new(),
            dropped: Vec::new(),
            tally: Tally::default(),
        }
    }

    fn request(&mut self, root: Value<'_>) -> Result<(), BodyFault> {
        if root.kind() != Kind::Object {
            return Err(BodyFault {
                message: "The body must be a JSON object.".to_owned(),
                param: None,
                code: None,
            });
        }
        self.put(b"{");
        let empty = self.members(root, members::REQUEST)?;
        if let Some(aim) = self.aim {
            self.add_missing(root, aim, empty);
        }
        self.put(b"}");
        Ok(())
    }

    /// The caps and options that the caller left out.
    fn add_missing(&mut self, root: Value<'_>, aim: Aim<'_>, mut empty: bool) {
        if !self.capped {
            let modern =
                self.endpoint == Endpoint::ChatCompletions && aim.dialect == Dialect::OpenAi;
            self.name(
                if modern {
                    "max_completion_tokens"
                } else {
                    "max_tokens"
                },
                &mut empty,
            );
            self.put(aim.max_output.to_string().as_bytes());
        }
        if aim.stream
            && root
                .get("stream_options")
                .is_none_or(|options| options.is_null())
        {
            self.name("stream_options", &mut empty);
            self.put(INCLUDE_USAGE);
        }
    }

    fn object(&mut self, value: Value<'_>, fields: &'static [Field]) -> Result<(), BodyFault> {
        self.want(value, Kind::Object, "an object")?;
        self.put(b"{");
        self.members(value, fields)?;
        self.put(b"}");
        Ok(())
    }

    /// Walks members without the braces; returns whether none was written.
    fn members(&mut self, value: Value<'_>, fields: &'static [Field]) -> Result<bool, BodyFault> {
        let mut empty = true;
        for member in value.members() {
            let Some(field) = fields.iter().find(|field| self.knows(field, &member.key)) else {
                self.unknown(&member, &mut empty)?;
                continue;
            };
            // `null` is how many SDKs write "not set".
            if member.value.is_null() {
                continue;
            }
            self.known(field, member.value, &mut empty)?;
        }
        for field in fields.iter().filter(|field| field.required) {
            if self.knows(field, field.name) && value.get(field.name).is_none_or(|v| v.is_null()) {
                self.path.push(Step::Name(field.name));
                return Err(self.fault("missing_required_parameter", "is required"));
            }
        }
        Ok(empty)
    }

    fn known(
        &mut self,
        field: &'static Field,
        value: Value<'_>,
        empty: &mut bool,
    ) -> Result<(), BodyFault> {
        let quiet = self.quiet;
        self.quiet |= field.quiet;
        self.path.push(Step::Name(field.name));
        // Not streaming: servers refuse a body that has `stream_options`.
        let hidden =
            matches!(field.shape, Shape::StreamOptions) && !self.aim.is_some_and(|aim| aim.stream);
        if !hidden {
            self.name(field.name, empty);
        }
        self.shape(value, &field.shape)?;
        self.path.pop();
        self.quiet = quiet;
        Ok(())
    }

    /// Whether this field is meant by `name` on this endpoint and for this upstream.
    fn knows(&self, field: &Field, name: &str) -> bool {
        let endpoint = match self.endpoint {
            Endpoint::ChatCompletions => CHAT,
            Endpoint::Completions => COMPLETIONS,
        };
        let dialect = match self.aim.map(|aim| aim.dialect) {
            None => {
                return field.name == name && field.endpoints & endpoint != 0 && field.is_common();
            }
            Some(Dialect::Guan) => GUAN,
            Some(Dialect::Vllm) => VLLM,
            Some(Dialect::Sglang) => SGLANG,
            Some(Dialect::LlamaServer) => LLAMA,
            Some(Dialect::OpenAi) => OPENAI,
        };
        field.name == name && field.endpoints & endpoint != 0 && field.dialects & dialect != 0
    }

    fn unknown(&mut self, member: &Member<'_>, empty: &mut bool) -> Result<(), BodyFault> {
        let Some(aim) = self.aim else {
            // Whether it will be forwarded isn't known yet; the bound must hold if it is.
            self.count(whole(member.value));
            return Ok(());
        };
        if aim.unknown == UnknownFields::Refuse {
            let shown = shorten(&member.key);
            let param = self.param(&shown, true);
            return Err(BodyFault {
                message: format!("Unrecognized request argument: '{param}'. Remove it."),
                param: Some(param),
                code: Some("unknown_parameter"),
            });
        }
        if aim.unknown == UnknownFields::Forward && self.passes(&member.key) {
            return self.pass_unknown(member, empty);
        }
        self.drop_member(&member.key);
        Ok(())
    }

    /// Whether an unknown member may pass where the operator forwards them.
    fn passes(&self, key: &str) -> bool {
        match self.path.first() {
            None => NEVER.binary_search(&key).is_err(),
            Some(Step::Name("stream_options")) => false,
            Some(_) => true,
        }
    }

    /// Forwards what the dialect doesn't know, but a cap under any name is still a cap.
    fn pass_unknown(&mut self, member: &Member<'_>, empty: &mut bool) -> Result<(), BodyFault> {
        let cap = members::REQUEST.iter().find(|field| {
            self.path.is_empty()
                && field.name == member.key
                && matches!(field.shape, Shape::Cap | Shape::Floor)
        });
        if let Some(field) = cap {
            return if member.value.is_null() {
                Ok(())
            } else {
                self.known(field, member.value, empty)
            };
        }
        if self.writing {
            if !std::mem::take(empty) {
                self.out.push(b',');
            }
            write_string(&mut self.out, &member.key);
            self.out.push(b':');
        }
        self.copy(member.value);
        Ok(())
    }

    fn drop_member(&mut self, key: &str) {
        if self.dropped.len() < DROPPED_MAX {
            let path = self.param(&shorten(key), false);
            if !self.dropped.contains(&path) {
                self.dropped.push(path);
            }
        }
    }

    fn shape(&mut self, value: Value<'_>, shape: &'static Shape) -> Result<(), BodyFault> {
        match shape {
            Shape::Bool => self.want(value, Kind::Bool, "true or false")?,
            Shape::Text => self.text(value)?,
            Shape::Tag => self.want(value, Kind::String, "a string")?,
            Shape::Word(words) => self.word(value, words)?,
            Shape::Int(low, high) => {
                self.integer(value, *low, *high)?;
            }
            Shape::Num(low, high) => self.number(value, *low, *high)?,
            Shape::Model => return self.model(value),
            Shape::Cap | Shape::Floor => return self.cap(value, matches!(shape, Shape::Cap)),
            Shape::Free => {
                self.want(value, Kind::Object, "an object")?;
                self.count(whole(value));
            }
            Shape::Numbers => self.entries(value, Kind::Number, "a number")?,
            Shape::Strings => self.entries(value, Kind::String, "a string")?,
            Shape::Object(fields) => return self.object(value, fields),
            Shape::Tagged(tag, variants) => return self.tagged(value, tag, variants).map(drop),
            Shape::List(of, fewest, most) => return self.list(value, of, *fewest, *most),
            Shape::Either(shapes) => return self.either(value, shapes),
            Shape::Messages => return self.messages(value),
            Shape::Prompt => self.prompt(value)?,
            Shape::StreamOptions => return self.stream_options(value),
            Shape::Image => {
                self.want(value, Kind::String, "a string")?;
                let inline = value.as_str().is_some_and(|url| url.starts_with("data:"));
                if !inline && self.aim.is_some_and(|aim| aim.dialect != Dialect::OpenAi) {
                    return Err(self.fault(
                        "invalid_value",
                        "must be a data: URL: this model's server fetches no addresses for callers",
                    ));
                }
                self.tally.images = self.tally.images.saturating_add(1);
            }
            Shape::Sound => {
                self.want(value, Kind::String, "a string")?;
                self.count(as_u64(value.raw().len()) / 16);
            }
        }
        self.copy(value);
        Ok(())
    }

    fn model(&mut self, value: Value<'_>) -> Result<(), BodyFault> {
        self.want(value, Kind::String, "a string")?;
        let length = value.as_str().map_or(0, |name| name.len());
        if length == 0 || length > MODEL_MAX {
            return Err(self.fault(
                "invalid_value",
                "must be the name of a model, up to 256 bytes",
            ));
        }
        if let (Some(aim), true) = (self.aim, self.writing) {
            write_string(&mut self.out, aim.model);
        }
        Ok(())
    }

    fn cap(&mut self, value: Value<'_>, ceiling: bool) -> Result<(), BodyFault> {
        let number = self.integer(value, i128::from(ceiling), i128::from(u32::MAX))?;
        self.capped |= match self.path.last() {
            Some(Step::Name("max_tokens")) => true,
            // Old builds of llama-server read the other name only.
            Some(Step::Name("max_completion_tokens")) => {
                self.endpoint == Endpoint::ChatCompletions
                    && self
                        .aim
                        .is_some_and(|aim| aim.dialect != Dialect::LlamaServer)
            }
            _ => false,
        };
        if let (Some(aim), true) = (self.aim, self.writing) {
            let lowered = u64::try_from(number)
                .unwrap_or(aim.max_output)
                .min(aim.max_output);
            self.out.extend_from_slice(lowered.to_string().as_bytes());
        }
        Ok(())
    }

    /// Walks the variant that the tag names; returns it.
    fn tagged(
        &mut self,
        value: Value<'_>,
        tag: &'static str,
        variants: &'static [Variant],
    ) -> Result<&'static str, BodyFault> {
        self.want(value, Kind::Object, "an object")?;
        let named = value.get(tag);
        let word = named.and_then(|tag| tag.as_str());
        if let Some((name, fields)) = variants
            .iter()
            .find(|(name, _)| word.as_deref() == Some(*name))
        {
            self.object(value, fields)?;
            return Ok(name);
        }
        self.path.push(Step::Name(tag));
        match named {
            None => Err(self.fault("missing_required_parameter", "is required")),
            Some(tag) if word.is_none() => Err(self.mistyped(tag, "a string")),
            Some(_) => {
                let names = listed(variants.iter().map(|(name, _)| name));
                Err(self.fault("invalid_value", &format!("must be one of {names}")))
            }
        }
    }

    fn list(
        &mut self,
        value: Value<'_>,
        of: &'static Shape,
        fewest: usize,
        most: usize,
    ) -> Result<(), BodyFault> {
        self.want(value, Kind::Array, "an array")?;
        self.size(value, fewest, most)?;
        self.put(b"[");
        for (index, element) in value.elements().enumerate() {
            self.put(if index == 0 { b"" } else { b"," });
            self.path.push(Step::Index(index));
            self.shape(element, of)?;
            self.path.pop();
        }
        self.put(b"]");
        Ok(())
    }

    fn either(&mut self, value: Value<'_>, shapes: &'static [Shape]) -> Result<(), BodyFault> {
        match shapes.iter().find(|shape| kind_of(shape) == value.kind()) {
            Some(shape) => self.shape(value, shape),
            None => {
                let kinds: Vec<_> = shapes
                    .iter()
                    .map(|shape| kind_name(kind_of(shape)))
                    .collect();
                Err(self.mistyped(value, &kinds.join(" or ")))
            }
        }
    }

    fn messages(&mut self, value: Value<'_>) -> Result<(), BodyFault> {
        self.want(value, Kind::Array, "an array")?;
        self.size(value, 1, usize::MAX)?;
        self.put(b"[");
        for (index, message) in value.elements().enumerate() {
            self.put(if index == 0 { b"" } else { b"," });
            self.path.push(Step::Index(index));
            if self.tagged(message, "role", members::MESSAGE)? == "assistant"
                && says_nothing(message)
            {
                self.path.push(Step::Name("content"));
                return Err(self.fault(
                    "missing_required_parameter",
                    "is required unless there are tool calls",
                ));
            }
            self.path.pop();
        }
        self.put(b"]");
        Ok(())
    }

    fn stream_options(&mut self, value: Value<'_>) -> Result<(), BodyFault> {
        let writing = std::mem::replace(&mut self.writing, false);
        self.object(value, members::STREAM_OPTIONS)?;
        self.writing = writing;
        if self.aim.is_some_and(|aim| aim.stream) {
            self.put(INCLUDE_USAGE);
        }
        Ok(())
    }

    fn count(&mut self, tokens: u64) {
        if !self.quiet {
            self.tally.text = self.tally.text.saturating_add(tokens);
        }
    }

    fn name(&mut self, name: &str, empty: &mut bool) {
        if self.writing {
            if !std::mem::take(empty) {
                self.out.push(b',');
            }
            write_string(&mut self.out, name);
            self.out.push(b':');
        }
    }

    fn copy(&mut self, value: Value<'_>) {
        self.put(value.raw());
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.writing {
            self.out.extend_from_slice(bytes);
        }
    }
}

fn says_nothing(message: Value<'_>) -> bool {
    ["content", "tool_calls", "function_call", "refusal", "audio"]
        .iter()
        .all(|name| message.get(name).is_none_or(|value| value.is_null()))
}

fn kind_of(shape: &Shape) -> Kind {
    match shape {
        Shape::Bool => Kind::Bool,
        Shape::Text | Shape::Word(_) | Shape::Tag | Shape::Model | Shape::Image | Shape::Sound => {
            Kind::String
        }
        Shape::Int(..) | Shape::Num(..) | Shape::Cap | Shape::Floor => Kind::Number,
        Shape::Free
        | Shape::Numbers
        | Shape::Strings
        | Shape::Object(_)
        | Shape::Tagged(..)
        | Shape::StreamOptions => Kind::Object,
        Shape::List(..) | Shape::Messages | Shape::Prompt | Shape::Either(_) => Kind::Array,
    }
}
