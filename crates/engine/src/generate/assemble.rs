//! Turns the bytes of tokens into text: puts characters together that span tokens, cuts at the
//! first stop string, and holds back only what could still become either. Pure; streaming and
//! non-streaming answers both come from here, so their text is the same.
//! Called by `generate` once a token.

/// Text under construction.
#[derive(Debug)]
pub(crate) struct Assembler {
    stops: Vec<Vec<u8>>,
    /// Bytes that are not sent yet: the beginning of a character or of a stop string.
    held: Vec<u8>,
    stopped: bool,
}

impl Assembler {
    /// An assembler that ends the text before the first of `stops`; empty ones are ignored.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        let stops = stops
            .into_iter()
            .filter(|stop| !stop.is_empty())
            .map(String::into_bytes);
        Self {
            stops: stops.collect(),
            held: Vec::new(),
            stopped: false,
        }
    }

    /// Takes the bytes of one token and returns the text that is now certain.
    pub(crate) fn push(&mut self, piece: &[u8]) -> String {
        if self.stopped {
            return String::new();
        }
        let fresh = self.held.len();
        self.held.extend_from_slice(piece);
        if let Some(start) = self.first_stop(fresh) {
            self.stopped = true;
            self.held.truncate(start);
            return self.flush();
        }
        let keep = self.stop_begins_at().min(unfinished_character(&self.held));
        let rest = self.held.split_off(keep);
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held = rest;
        text
    }

    /// The rest of the text, when no token follows. A cut character becomes one U+FFFD.
    pub(crate) fn flush(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        text
    }

    /// Whether a stop string ended the text.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Where the stop string that is complete first begins. Of several that end at the same byte
    /// the longest counts. Judged byte by byte, so the cut doesn't depend on token borders.
    fn first_stop(&self, fresh: usize) -> Option<usize> {
        (fresh.saturating_add(1)..=self.held.len()).find_map(|end| {
            let upto = self.held.get(..end)?;
            self.stops
                .iter()
                .filter(|stop| upto.ends_with(stop))
                .map(|stop| end.saturating_sub(stop.len()))
                .min()
        })
    }

    /// Where the longest suffix begins that is the beginning of a stop string.
    fn stop_begins_at(&self) -> usize {
        let longest = self.stops.iter().map(Vec::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        (from..self.held.len())
            .find(|at| {
                let tail = self.held.get(*at..).unwrap_or_default();
                self.stops.iter().any(|stop| stop.starts_with(tail))
            })
            .unwrap_or(self.held.len())
    }
}

/// Where a character begins whose last bytes are still missing; else the length.
fn unfinished_character(bytes: &[u8]) -> usize {
    let window = bytes.len().saturating_sub(3);
    let begins = (window..bytes.len())
        .rev()
        .find(|at| bytes.get(*at).is_some_and(|b| *b >= 0xC0));
    let Some(at) = begins else { return bytes.len() };
    let tail = bytes.get(at..).unwrap_or_default();
    match std::str::from_utf8(tail) {
        // `None` means: right so far, but it ends too early
        Err(error) if error.error_len().is_none() => at.saturating_add(error.valid_up_to()),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pieces as they were sent, the flush last.
    fn run(stops: &[&str], tokens: &[&[u8]]) -> (Vec<String>, bool) {
        let mut text = Assembler::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut sent = Vec::new();
        for token in tokens {
            sent.push(text.push(token));
            if text.stopped() {
                return (sent, true);
            }
        }
        sent.push(text.flush());
        (sent, false)
    }

    fn whole(stops: &[&str], tokens: &[&[u8]]) -> (String, bool) {
        let (sent, stopped) = run(stops, tokens);
        (sent.concat(), stopped)
    }

    #[test]
    fn a40_a_character_across_tokens_is_one_character() {
        let (sent, _) = run(&[], &[b"\xF0\x9F", b"\x8D\x8B"]);
        assert_eq!(sent, ["", "🍋", ""]);
    }

    #[test]
    fn a40_b_stop_across_tokens_leaks_nothing() {
        let (sent, stopped) = run(
            &["blueberry"],
            &[b"I like ", b"blue", b"be", b"rry", b" pie"],
        );
        assert_eq!(sent, ["I like ", "", "", ""]);
        assert!(stopped);
    }

    #[test]
    fn a40_c_held_text_comes_when_the_stop_fails() {
        let (sent, stopped) = run(&["blueberry"], &[b"blue", b" sky"]);
        assert_eq!(sent, ["", "blue sky", ""]);
        assert!(!stopped);
    }

    #[test]
    fn a40_d_held_text_is_flushed_at_the_end() {
        let (sent, stopped) = run(&["blueberry"], &[b"blue"]);
        assert_eq!(sent, ["", "blue"]);
        assert!(!stopped);
    }

    #[test]
    fn a40_e_stop_inside_one_token() {
        assert_eq!(
            whole(&["blueberry"], &[b"xblueberryy"]),
            ("x".to_owned(), true)
        );
    }

    #[test]
    fn a40_f_earliest_match_wins() {
        for stops in [["blue", "blueberry"], ["blueberry", "blue"]] {
            assert_eq!(
                whole(&stops, &[b"a blue", b"berry"]),
                ("a ".to_owned(), true)
            );
            assert_eq!(whole(&stops, &[b"a blueberry"]), ("a ".to_owned(), true));
        }
        // complete first beats begun first, however the tokens fall
        for tokens in [&[b"bluebe".as_slice(), b"rry"] as &[&[u8]], &[b"blueberry"]] {
            assert_eq!(
                whole(&["blueberry", "be"], tokens),
                ("blue".to_owned(), true)
            );
        }
        assert_eq!(whole(&["b", "ab"], &[b"xab"]), ("x".to_owned(), true));
    }

    #[test]
    fn a40_g_cut_character_is_one_replacement_at_the_end() {
        assert_eq!(
            whole(&[], &[b"ok \xF0\x9F\x8D"]),
            ("ok \u{FFFD}".to_owned(), false)
        );
        assert_eq!(
            whole(&[], &[b"ok ", b"\xF0", b"\x9F"]),
            ("ok \u{FFFD}".to_owned(), false)
        );
    }

    #[test]
    fn a40_h_stop_with_a_wide_character_across_tokens() {
        let (sent, stopped) = run(&["🍋!"], &[b"sour \xF0\x9F", b"\x8D", b"\x8B", b"!"]);
        assert_eq!(sent, ["sour ", "", "", ""]);
        assert!(stopped);
        assert_eq!(
            whole(&["🍋"], &[b"a\xF0\x9F", b"\x8D\x8Bb"]),
            ("a".to_owned(), true)
        );
        assert_eq!(
            whole(&["🍋"], &["a🍊b".as_bytes()]),
            ("a🍊b".to_owned(), false)
        );
    }

    #[test]
    fn a40_text_does_not_depend_on_token_borders() {
        let text = "naïve 🍋🍊 日本語 stop! blueblueberry ab";
        for stops in [
            &[] as &[&str],
            &["stop!"],
            &["blueberry"],
            &["語", "🍋🍋"],
            &["zz"],
        ] {
            let expected = whole(stops, &[text.as_bytes()]);
            for size in 1..7 {
                let tokens: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
                assert_eq!(
                    whole(stops, &tokens),
                    expected,
                    "{stops:?} in pieces of {size}"
                );
            }
        }
    }

    #[test]
    fn a40_only_what_may_still_match_is_held() {
        let (sent, _) = run(&["\n\nUser:"], &[b"one\n", b"\n", b"\nUs", b"e"]);
        assert_eq!(sent, ["one", "", "\n", "", "\n\nUse"]);
    }

    #[test]
    fn wrong_bytes_are_replaced_and_do_not_stick() {
        let (sent, _) = run(&[], &[b"a\xFFb", b"\x80", b"\xC3", b"(", b"z"]);
        assert_eq!(sent, ["a\u{FFFD}b", "\u{FFFD}", "", "\u{FFFD}(", "z", ""]);
    }
}
