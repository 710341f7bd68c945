//! The event grammar: legal forms that are seldom seen, every way to cut a stream, ends and limits.

use super::*;

#[derive(Debug, PartialEq, Eq, Clone)]
enum Seen {
    Data(String),
    Named(String, String),
    Comment,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("whole characters")
}

fn note(seen: &mut Vec<Seen>) -> impl FnMut(Frame<'_>) + '_ {
    |frame| {
        seen.push(match frame {
            Frame::Data { event: None, data } => Seen::Data(text(data)),
            Frame::Data {
                event: Some(event),
                data,
            } => Seen::Named(text(event), text(data)),
            Frame::Comment => Seen::Comment,
        });
    }
}

/// Frames, and what was discarded at the end.
fn split(pieces: &[&[u8]]) -> (Vec<Seen>, usize) {
    let mut seen = Vec::new();
    let mut splitter = Splitter::new(1 << 20);
    let mut sink = note(&mut seen);
    for piece in pieces {
        splitter.push(piece, &mut sink).expect("fits");
    }
    let left = splitter.finish(&mut sink);
    drop(sink);
    (seen, left)
}

/// All frames, the same however the bytes are cut.
fn frames(src: &[u8]) -> Vec<Seen> {
    let whole = split(&[src]);
    let bytes: Vec<_> = src.chunks(1).collect();
    assert_eq!(split(&bytes), whole, "one byte at a time");
    for cut in 0..=src.len() {
        let (head, tail) = src.split_at(cut);
        assert_eq!(split(&[head, tail]), whole, "cut at {cut}");
    }
    for size in [2, 3, 5, 7] {
        let pieces: Vec<_> = src.chunks(size).collect();
        assert_eq!(split(&pieces), whole, "pieces of {size}");
    }
    assert_eq!(whole.1, 0);
    whole.0
}

fn data(texts: &[&str]) -> Vec<Seen> {
    texts
        .iter()
        .map(|text| Seen::Data((*text).to_owned()))
        .collect()
}

#[test]
fn the_plain_form() {
    assert_eq!(
        frames(b"data: {\"a\":1}\n\ndata: [DONE]\n\n"),
        data(&["{\"a\":1}", "[DONE]"])
    );
    assert_eq!(frames(b""), []);
}

#[test]
fn a01_characters_are_never_cut() {
    let src = "data: {\"content\":\"雪ñ🍋\"}\n\ndata: [DONE]\n\n".as_bytes();
    assert_eq!(frames(src), data(&["{\"content\":\"雪ñ🍋\"}", "[DONE]"]));
}

#[test]
fn a02_legal_forms_say_the_same() {
    let plain = data(&["{\"a\":\n1}", "{\"b\":2}"]);
    for src in [
        "data: {\"a\":\ndata: 1}\n\ndata: {\"b\":2}\n\n",
        "data: {\"a\":\r\ndata: 1}\r\n\r\ndata: {\"b\":2}\r\n\r\n",
        "data: {\"a\":\rdata: 1}\r\rdata: {\"b\":2}\r\r",
        "data:{\"a\":\ndata:1}\n\ndata:{\"b\":2}\n\n",
        "id: 7\nretry: 10\ndata: {\"a\":\nid\ndata: 1}\n\nretry\n\ndata: {\"b\":2}\nother: x\n\n",
        "\u{feff}data: {\"a\":\ndata: 1}\n\n\n\n\ndata: {\"b\":2}\n\n",
        "data: {\"a\":\r\ndata: 1}\n\ndata: {\"b\":2}\r\n\n",
        "data: {\"a\":\ndata: 1}\n\r\ndata: {\"b\":2}\n\r",
    ] {
        assert_eq!(frames(src.as_bytes()), plain, "{src:?}");
    }
}

#[test]
fn a02_comments_stay_comments() {
    let seen = frames(b": waiting\n\ndata: 1\n: in between\ndata: 2\n\n:\n\n:data: 3\n\n");
    let one_two = Seen::Data("1\n2".to_owned());
    assert_eq!(
        seen,
        [
            Seen::Comment,
            Seen::Comment,
            one_two,
            Seen::Comment,
            Seen::Comment
        ]
    );
}

#[test]
fn names_belong_to_one_event() {
    let named = Seen::Named("error".to_owned(), "1".to_owned());
    let src = b"event: x\nevent: error\ndata: 1\n\ndata: 2\n\nevent: lost\n\ndata: 3\n\nevent:\ndata: 4\n\n";
    let mut expected = vec![named];
    expected.extend(data(&["2", "3", "4"]));
    assert_eq!(frames(src), expected);
}

#[test]
fn spaces_and_empty_data() {
    assert_eq!(frames(b"data:  two\n\n"), data(&[" two"]));
    assert_eq!(frames(b"data:\tx \n\n"), data(&["\tx "]));
    assert_eq!(frames(b"data\n\n"), data(&[""]));
    assert_eq!(frames(b"data:\n\n"), data(&[""]));
    assert_eq!(frames(b"data\ndata\n\n"), data(&["\n"]));
    assert_eq!(frames(b"data: a:b: c\n\n"), data(&["a:b: c"]));
    assert_eq!(frames(b" data: x\n\nDATA: x\n\ndatax: y\n\n"), []);
}

#[test]
fn a_mark_counts_at_the_start_only() {
    assert_eq!(frames(b"\xef\xbb\xbfdata: 1\n\n"), data(&["1"]));
    assert_eq!(
        frames(b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\ndata: 2\n\n"),
        data(&["2"])
    );
    assert_eq!(frames(b"\xef\xbbdata: 1\n\ndata: 2\n\n"), data(&["2"]));
    assert_eq!(frames(b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n"), data(&["1"]));
}

#[test]
fn an_open_end_is_discarded_but_for_done() {
    for (src, left) in [
        (&b"data: 1\n\ndata: {\"cut"[..], 11),
        (b"data: 1\n\ndata: 2\n", 1),
        (b"data: 1\n\ndata: 2\nda", 3),
        (b"data: 1\n\nevent: x\n", 1),
        (b"data: 1\n\n", 0),
        (b"data: 1\n\n\r\n", 0),
    ] {
        assert_eq!(split(&[src]), (data(&["1"]), left), "{src:?}");
    }
    for end in [
        "data: [DONE]",
        "data: [DONE]\n",
        "data:[DONE]",
        "data: [DONE]\r",
        "data: [DONE]\r\n",
    ] {
        let src = format!("data: 1\n\n{end}");
        assert_eq!(frames(src.as_bytes()), data(&["1", "[DONE]"]), "{end:?}");
    }
    assert_eq!(split(&[b"data: [DONE"]).0, []);
    assert_eq!(split(&[b"data: x\ndata: [DONE]"]).0, []);
}

#[test]
fn a_large_event_ends_the_stream() {
    let mut splitter = Splitter::new(16);
    let mut seen = Vec::new();
    let mut sink = note(&mut seen);
    assert_eq!(splitter.push(b"data: 0123456789\n\n", &mut sink), Ok(()));
    assert_eq!(
        splitter.push(b"data: 01234567890\n\n", &mut sink),
        Err(TooLarge { limit: 16 })
    );
    assert_eq!(
        splitter.push(b"data: 0\n\n", &mut sink),
        Err(TooLarge { limit: 16 })
    );
    drop(sink);
    assert_eq!(seen, data(&["0123456789"]));
    for src in [
        &b"data: 0123456\ndata: 0123456789012\n\n"[..],
        b": 01234567890123456",
        b"event: 0123456789\ndata: 0123456\n\n",
    ] {
        for size in [1, 4, 100] {
            let mut splitter = Splitter::new(16);
            let failed = src
                .chunks(size)
                .any(|piece| splitter.push(piece, &mut |_| {}).is_err());
            assert!(failed, "{size}: {src:?}");
        }
    }
}

#[test]
fn one_byte_at_a_time_costs_no_square() {
    let event = format!("data: {}\n\n", "x".repeat(1_000_000));
    let mut splitter = Splitter::new(2 << 20);
    let mut sizes = Vec::new();
    let mut sink = |frame: Frame<'_>| {
        if let Frame::Data { data, .. } = frame {
            sizes.push(data.len());
        }
    };
    for byte in event.as_bytes().chunks(1) {
        splitter.push(byte, &mut sink).expect("fits");
    }
    assert_eq!(sizes, [1_000_000]);
}

#[test]
fn random_streams_read_the_same_however_cut() {
    const PARTS: &[&[u8]] = &[
        b"data: x",
        b"data:y",
        b"data",
        b"event: e",
        b": c",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\r\n\r\n",
        b"data: [DONE]",
        b"id: 1",
        "data: 雪🍋".as_bytes(),
        b"\xef\xbb\xbf",
        b"",
    ];
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut below = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 20).unwrap() % limit
    };
    for round in 0..3000 {
        let src: Vec<u8> = (0..below(20))
            .flat_map(|_| PARTS[below(PARTS.len())].to_vec())
            .collect();
        let whole = split(&[&src]);
        let bytes: Vec<_> = src.chunks(1).collect();
        assert_eq!(split(&bytes), whole, "round {round}: {src:?}");
        let (head, tail) = src.split_at(below(src.len() + 1));
        assert_eq!(split(&[head, tail]), whole, "round {round}: {src:?}");
    }
}

#[test]
fn a02_what_we_write_is_one_line() {
    let mut out = Vec::new();
    write_data(&mut out, b"{\"a\":\n1,\r\n\"b\":2}");
    write_data(&mut out, b"[DONE]");
    write_comment(&mut out, "position\n3");
    assert_eq!(
        text(&out),
        "data: {\"a\": 1,  \"b\":2}\n\ndata: [DONE]\n\n: position 3\n\n"
    );
    let mut expected = data(&["{\"a\": 1,  \"b\":2}", "[DONE]"]);
    expected.push(Seen::Comment);
    assert_eq!(frames(&out), expected);
    let mut buffer = bytes::BytesMut::new();
    write_data(&mut buffer, b"x");
    assert_eq!(&buffer[..], b"data: x\n\n");
}
