//! One sequence: logits in, events out. Decides the next token, the text that is certain, and when
//! the answer ends. It knows nothing of batches, slots or HTTP, and calls no llama.cpp: the
//! vocabulary is a trait. Called by `schedule` after each batch step.

pub(crate) mod assemble;
pub(crate) mod sample;

use assemble::Assembler;
use sample::{Pick, Sampler, Sampling, Scratch};

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// It reached its token limit, or the end of the context.
    Length,
}

/// What happens to a sequence, in the order it happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// More text, with the tokens it came from if log-probabilities were asked for.
    Text {
        text: String,
        logprobs: Vec<TokenLogprob>,
    },
    /// The end; `tokens` were generated in all.
    Done { finish: Finish, tokens: u32 },
    /// The engine gave the sequence up; trying again may help.
    Failed { message: String },
}

/// A generated token, and what the model thought of it and of its rivals.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenLogprob {
    pub(crate) bytes: Vec<u8>,
    pub(crate) logprob: f32,
    pub(crate) top: Vec<(Vec<u8>, f32)>,
}

/// What a sequence must know about tokens.
pub(crate) trait Vocabulary {
    /// Appends the bytes of `token` to `out`.
    fn piece(&self, token: usize, out: &mut Vec<u8>);
    /// Whether `token` ends an answer.
    fn ends(&self, token: usize) -> bool;
}

/// The generating half of one sequence.
#[derive(Debug)]
pub(crate) struct Sequence {
    sampler: Sampler,
    text: Assembler,
    max_tokens: u32,
    generated: u32,
    /// Tokens whose text is still held back.
    pending: Vec<TokenLogprob>,
    reports: bool,
    piece: Vec<u8>,
}

/// The outcome of one step.
#[derive(Debug)]
pub(crate) struct Step {
    /// The token to feed back, if the answer goes on.
    pub(crate) token: usize,
    /// Text that became certain.
    pub(crate) text: Option<Event>,
    /// The end, if this was the last step.
    pub(crate) done: Option<Event>,
}

impl Sequence {
    /// A sequence that follows `prompt` and generates at most `max_tokens`.
    pub(crate) fn new(
        how: Sampling,
        stops: Vec<String>,
        max_tokens: u32,
        prompt: impl Iterator<Item = usize>,
    ) -> Self {
        Self {
            reports: how.top_logprobs.is_some(),
            sampler: Sampler::new(how, prompt),
            text: Assembler::new(stops),
            max_tokens,
            generated: 0,
            pending: Vec::new(),
            piece: Vec::new(),
        }
    }

    /// Picks the next token from `logits`.
    pub(crate) fn step(
        &mut self,
        logits: &[f32],
        scratch: &mut Scratch,
        vocabulary: &impl Vocabulary,
    ) -> Step {
        let pick = self.sampler.pick(logits, scratch);
        let token = pick.token;
        self.generated = self.generated.saturating_add(1);
        let (text, finish) = if vocabulary.ends(token) {
            (self.text.flush(), Some(Finish::Stop))
        } else {
            self.take(pick, vocabulary)
        };
        // without text the tokens wait; those of a stop string are never shown
        let logprobs = if text.is_empty() {
            Vec::new()
        } else {
            std::mem::take(&mut self.pending)
        };
        Step {
            token,
            text: (!text.is_empty()).then_some(Event::Text { text, logprobs }),
            done: finish.map(|finish| Event::Done {
                finish,
                tokens: self.generated,
            }),
        }
    }

    fn take(&mut self, pick: Pick, vocabulary: &impl Vocabulary) -> (String, Option<Finish>) {
        self.piece.clear();
        vocabulary.piece(pick.token, &mut self.piece);
        if self.reports {
            self.pending.push(report(&self.piece, &pick, vocabulary));
        }
        let mut text = self.text.push(&self.piece);
        if self.text.stopped() {
            return (text, Some(Finish::Stop));
        }
        if self.generated >= self.max_tokens {
            text.push_str(&self.text.flush());
            return (text, Some(Finish::Length));
        }
        (text, None)
    }
}

fn report(piece: &[u8], pick: &Pick, vocabulary: &impl Vocabulary) -> TokenLogprob {
    let top = pick.top.iter().map(|(token, logprob)| {
        let mut bytes = Vec::new();
        vocabulary.piece(*token, &mut bytes);
        (bytes, *logprob)
    });
    TokenLogprob {
        bytes: piece.to_vec(),
        logprob: pick.logprob.unwrap_or(f32::NEG_INFINITY),
        top: top.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Token n stands for the n-th piece; the last token ends the answer.
    struct Pieces(Vec<&'static [u8]>);

    impl Vocabulary for Pieces {
        fn piece(&self, token: usize, out: &mut Vec<u8>) {
            out.extend_from_slice(self.0.get(token).copied().unwrap_or_default());
        }

        fn ends(&self, token: usize) -> bool {
            token >= self.0.len()
        }
    }

    /// Plays the pieces in their order, then the end token, as a scripted model.
    fn play(pieces: &[&'static [u8]], stops: &[&str], max: u32) -> (Vec<String>, Finish, u32) {
        let vocabulary = Pieces(pieces.to_vec());
        let how = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut sequence = Sequence::new(how, stops, max, std::iter::empty());
        let mut scratch = Scratch::default();
        let mut sent = Vec::new();
        for token in 0..=pieces.len() {
            let mut logits = vec![0.0; pieces.len() + 1];
            logits[token] = 1.0;
            let step = sequence.step(&logits, &mut scratch, &vocabulary);
            if let Some(Event::Text { text, .. }) = step.text {
                sent.push(text);
            }
            if let Some(Event::Done { finish, tokens }) = step.done {
                return (sent, finish, tokens);
            }
        }
        panic!("the sequence didn't end");
    }

    #[test]
    fn a40_scripted_stop_across_tokens() {
        let pieces: &[&[u8]] = &[b"I like ", b"blue", b"be", b"rry", b" pie"];
        let played = play(pieces, &["blueberry"], 100);
        assert_eq!(played, (vec!["I like ".to_owned()], Finish::Stop, 4));
    }

    #[test]
    fn a40_scripted_end_of_text_flushes() {
        let played = play(&[b"blue"], &["blueberry"], 100);
        assert_eq!(played, (vec!["blue".to_owned()], Finish::Stop, 2));
    }

    #[test]
    fn a40_scripted_limit_flushes_half_a_character() {
        let played = play(&[b"a", b"\xF0\x9F", b"\x8D\x8B"], &[], 2);
        let sent = vec!["a".to_owned(), "\u{FFFD}".to_owned()];
        assert_eq!(played, (sent, Finish::Length, 2));
    }

    #[test]
    fn limit_and_stop_on_the_same_token_is_a_stop() {
        assert_eq!(play(&[b"a", b"b!"], &["!"], 2).1, Finish::Stop);
        assert_eq!(play(&[b"a", b"b"], &["!"], 2).1, Finish::Length);
    }

    #[test]
    fn logprobs_come_with_the_text_they_made() {
        let vocabulary = Pieces(vec![b"a", b"\xC3", b"\xA4"]);
        let how = Sampling {
            temperature: 0.0,
            top_logprobs: Some(1),
            ..Sampling::default()
        };
        let mut sequence = Sequence::new(how, Vec::new(), 9, std::iter::empty());
        let mut scratch = Scratch::default();
        let mut counts = Vec::new();
        for logits in [
            [1.0, 0.0, 0.0, 0.0],
            [0.0, 1.0, 0.0, 0.0],
            [0.0, 0.0, 1.0, 0.0],
        ] {
            match sequence.step(&logits, &mut scratch, &vocabulary).text {
                Some(Event::Text { text, logprobs }) => counts.push((text, logprobs.len())),
                _ => counts.push((String::new(), 0)),
            }
        }
        assert_eq!(
            counts,
            [("a".to_owned(), 1), (String::new(), 0), ("ä".to_owned(), 2)]
        );
    }
}
