//! Text to tokens and back: renders the model's own chat template, tokenises, and gives the bytes
//! of a token. It decides nothing about limits. Called by `serve` (off the runtime's thread, for
//! long texts take long) and, for single tokens, by `schedule`.

use std::fmt;
use std::io;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::generate::Vocabulary;

/// Steps a template may take; the largest real ones need about 1000 a message. A template comes
/// out of the model file, so it may not loop forever.
const TEMPLATE_FUEL: u64 = 10_000_000;

/// For models without a template. Those were not trained to chat, but they have read many pages of
/// questions with answers; marks of any chat format only confuse them (tried with Gemma 3 270M).
const TRANSCRIPT: &str = "\
    {{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}\
    Question: {{ m.content | trim }}\n{% elif m.role == 'assistant' %}\
    Answer: {{ m.content | trim }}\n{% else %}\
    {{ m.content | trim }}\n\n{% endif %}{% endfor %}Answer:";

/// What ends an answer in a [`TRANSCRIPT`]: the model would go on to ask itself.
const TRANSCRIPT_STOP: &str = "\nQuestion:";

/// The tokeniser and the template of one model.
pub(crate) struct Tokeniser {
    model: &'static LlamaModel,
    template: Option<Environment<'static>>,
    /// Whether the template is the model's own.
    trained: bool,
    bos: String,
    eos: String,
}

/// Why a conversation has no prompt. Shown to the client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unrendered {
    #[error("the model's chat template can't be used; send a prompt to /v1/completions instead")]
    NoTemplate,
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
}

impl fmt::Debug for Tokeniser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokeniser")
            .field("template", &self.template.is_some())
            .finish()
    }
}

impl Tokeniser {
    /// A tokeniser for `model`, whose file carries `template`.
    ///
    /// # Errors
    /// The template's own fault, if it can't be parsed; chat is then refused, the rest works.
    pub(crate) fn new(
        model: &'static LlamaModel,
        template: Option<String>,
    ) -> (Self, Option<String>) {
        let vocab = model.vocab();
        let shown = |token: LlamaToken| {
            let bytes = if token.0 < 0 {
                Vec::new()
            } else {
                vocab.token_to_piece(token, true, None)
            };
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let trained = template.is_some();
        let (template, fault) = match compile(template.unwrap_or_else(|| TRANSCRIPT.to_owned())) {
            Ok(template) => (Some(template), None),
            Err(fault) => (None, Some(fault.to_string())),
        };
        (
            Self {
                model,
                template,
                trained,
                bos: shown(vocab.bos()),
                eos: shown(vocab.eos()),
            },
            fault,
        )
    }

    /// The tokens of a conversation, up to where the assistant begins.
    ///
    /// # Errors
    /// [`Unrendered`], when there is no template or it refuses the messages.
    pub(crate) fn chat(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        settings: Option<&Value>,
    ) -> Result<Vec<LlamaToken>, Unrendered> {
        let template = self.template.as_ref().ok_or(Unrendered::NoTemplate)?;
        let fixed = context! {
            messages => minijinja::Value::from(Serde(messages)),
            tools => minijinja::Value::from(Serde(tools)),
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        let all = match settings {
            Some(settings) => context! { ..fixed, ..minijinja::Value::from(Serde(settings)) },
            None => fixed,
        };
        let text = template
            .get_template("chat")
            .and_then(|template| template.render(all))
            .map_err(|error| Unrendered::Refused(in_words(&error)))?;
        // most templates write the beginning mark themselves; two of them would confuse the model
        let begun = !self.bos.is_empty() && text.starts_with(&self.bos);
        Ok(self.model.vocab().tokenize(text.as_bytes(), !begun, true))
    }

    /// The tokens of a plain text, with the marks the model wants at the beginning.
    pub(crate) fn plain(&self, text: &str) -> Vec<LlamaToken> {
        self.model.vocab().tokenize(text.as_bytes(), true, true)
    }

    /// Whether the model was trained to chat, as far as its file shows.
    pub(crate) fn trained(&self) -> bool {
        self.trained
    }

    /// A stop string that chats of this model need besides the client's.
    pub(crate) fn chat_stop(&self) -> Option<String> {
        (!self.trained).then(|| TRANSCRIPT_STOP.to_owned())
    }

    /// Number of tokens the model knows.
    pub(crate) fn size(&self) -> usize {
        usize::try_from(self.model.n_vocab()).unwrap_or(0)
    }
}

/// The vocabulary as [`crate::generate`] sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Words(pub(crate) &'static LlamaModel);

impl Vocabulary for Words {
    fn piece(&self, token: usize, out: &mut Vec<u8>) {
        self.0
            .vocab()
            .token_to_piece_into(to_token(token), out, false, None);
    }

    fn ends(&self, token: usize) -> bool {
        self.0.vocab().is_eog(to_token(token))
    }
}

/// A place in the logits as a token.
pub(crate) fn to_token(place: usize) -> LlamaToken {
    LlamaToken(i32::try_from(place).unwrap_or(i32::MAX))
}

/// A token as a place in the logits.
pub(crate) fn to_place(token: LlamaToken) -> usize {
    usize::try_from(token.0).unwrap_or(0)
}

/// Compiles a template as the model's makers meant it: Jinja2 with the settings of `transformers`.
fn compile(source: String) -> Result<Environment<'static>, Error> {
    let mut templates = Environment::new();
    let blocks = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()?;
    templates.set_syntax(blocks);
    templates.set_fuel(Some(TEMPLATE_FUEL));
    templates.set_unknown_method_callback(unknown_method_callback);
    templates.add_filter("tojson", to_json);
    templates.add_function(
        "raise_exception",
        |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    templates.add_function("strftime_now", |format: String| -> Result<String, Error> {
        let now = jiff::Timestamp::now().to_zoned_datetime(jiff::tz::TimeZone::UTC);
        jiff::fmt::strtime::format(format, &now)
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    templates.add_template_owned("chat", source)?;
    Ok(templates)
}

/// The message of a template's `raise_exception`, or the fault with its place.
fn in_words(error: &Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (ErrorKind::OutOfFuel, _) => "it takes too long; shorten the conversation".to_owned(),
        _ => error.to_string(),
    }
}

/// `tojson` as Python's `json.dumps(…, ensure_ascii=False)` writes it: models saw that in training.
fn to_json(value: minijinja::Value, settings: Kwargs) -> Result<minijinja::Value, Error> {
    let indent: Option<usize> = settings.get("indent")?;
    // others (`ensure_ascii`, `separators`) keep their usual values
    drop(settings);
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let pretty = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, pretty))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Python)),
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(minijinja::Value::from_safe_string(
        String::from_utf8_lossy(&out).into_owned(),
    ))
}

/// JSON with a space after each comma and colon.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, messages: &Value) -> Result<String, String> {
        let template = compile(source.to_owned()).map_err(|error| in_words(&error))?;
        let chat = template.get_template("chat").unwrap();
        let messages = minijinja::Value::from(Serde(messages));
        chat.render(context! { messages, bos_token => "<s>" })
            .map_err(|error| in_words(&error))
    }

    #[test]
    fn templates_speak_python() {
        let source = "{{ bos_token }}{%- for m in messages %}\n  {%- if m['role'].startswith('u') %}\
                      [{{ m['content'].strip() | trim }}]{%- endif %}\n{%- endfor %}";
        let messages =
            json!([{"role": "user", "content": " hi "}, {"role": "tool", "content": ""}]);
        assert_eq!(render(source, &messages).unwrap(), "<s>[hi]");
    }

    #[test]
    fn models_without_a_template_get_a_transcript() {
        let messages = json!([
            {"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"}, {"role": "user", "content": "bye "},
        ]);
        assert_eq!(
            render(TRANSCRIPT, &messages).unwrap(),
            "<s>Be kind.\n\nQuestion: hi\nAnswer: hello\nQuestion: bye\nAnswer:"
        );
    }

    #[test]
    fn json_is_written_as_python_does() {
        let messages = json!({"b": [1, 2], "a": "<é>'", "c": null});
        let plain = render("{{ messages | tojson }}", &messages).unwrap();
        assert_eq!(plain, r#"{"b": [1, 2], "a": "<é>'", "c": null}"#);
        let pretty = render("{{ {'a': 1} | tojson(indent=2) }}", &messages).unwrap();
        assert_eq!(pretty, "{\n  \"a\": 1\n}");
    }

    #[test]
    fn a_templates_refusal_is_its_own_words() {
        let source = "{{ raise_exception('System role not supported') }}";
        assert_eq!(
            render(source, &json!([])).unwrap_err(),
            "System role not supported"
        );
    }

    #[test]
    fn an_endless_template_ends() {
        let source =
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        assert!(render(source, &json!([])).unwrap_err().contains("too long"));
    }

    #[test]
    fn time_is_known_to_templates() {
        let year = render("{{ strftime_now('%Y') }}", &json!([])).unwrap();
        assert_eq!(year.len(), 4);
    }
}
