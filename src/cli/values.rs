//! Reads JSON values one by one, from a source of any length and layout: it takes as much memory as the longest value.
//!
//! A value stands by itself, on a line or on several, or in an array, or in the list of a page of the `WorkOS` API
//! (`{"object":"list","data":[…],…}`). Its text is as it stands there. What is broken costs the value that it is in,
//! or its line, and not the others.

use std::borrow::Cow;
use std::io::{self, Read};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::event::EnvelopeError;

/// How much is read at once, at least.
const PIECE: usize = 64 * 1_024;

/// The longest value, in bytes: `serve` can't be set to take a longer body.
const LONGEST: usize = 256 * 1_024 * 1_024;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What the next value is in.
#[derive(Debug, Clone, Copy)]
enum Inside {
    Array,
    /// The list of a page.
    Page,
    /// What comes behind the list of a page, up to its brace.
    Tail,
}

/// A value, or why it is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Value {
    /// Where it begins.
    pub(super) line: usize,
    pub(super) text: Result<Vec<u8>, String>,
}

/// The values of a source.
#[derive(Debug)]
pub(super) struct Values<R> {
    source: R,
    piece: usize,
    /// What was read; before `at`, it is done with.
    buffer: Vec<u8>,
    at: usize,
    /// There is no more to read.
    ended: bool,
    /// The line of `at`, how far it is indented, and whether there was nothing else in it so far.
    line: usize,
    indentation: usize,
    indenting: bool,
    inside: Vec<Inside>,
}

impl<R: Read> Values<R> {
    pub(super) const fn new(source: R) -> Self {
        Self {
            source,
            piece: PIECE,
            buffer: Vec::new(),
            at: 0,
            ended: false,
            line: 1,
            indentation: 0,
            indenting: true,
            inside: Vec::new(),
        }
    }

    /// The next value; nothing at the end.
    ///
    /// # Errors
    /// The source can't be read.
    pub(super) fn next(&mut self) -> io::Result<Option<Value>> {
        while let Some(byte) = self.next_token()? {
            match (self.inside.last(), byte) {
                (Some(_), b',') | (Some(Inside::Tail), b':') => self.pass(1),
                (Some(Inside::Array), b']') | (Some(Inside::Tail), b'}') => {
                    self.pass(1);
                    self.inside.pop();
                }
                (Some(Inside::Page), b']') => {
                    self.pass(1);
                    self.inside.pop();
                    self.inside.push(Inside::Tail);
                }
                (Some(Inside::Tail), _) => match self.measure()? {
                    Ok(length) => self.pass(length),
                    Err(reason) => {
                        self.inside.pop();
                        return self.pass_broken(reason).map(Some);
                    }
                },
                (_, b'[') => {
                    self.pass(1);
                    self.inside.push(Inside::Array);
                }
                _ => {
                    if let Some(length) = self.measure_page_head()? {
                        self.pass(length);
                        self.inside.push(Inside::Page);
                        continue;
                    }
                    let length = match self.measure()? {
                        Ok(length) => length,
                        Err(reason) => return self.pass_broken(reason).map(Some),
                    };
                    let value = Value {
                        line: self.line,
                        text: Ok(self.rest()[..length].to_vec()),
                    };
                    self.pass(length);
                    return Ok(Some(value));
                }
            }
        }
        let cut = !std::mem::take(&mut self.inside).is_empty();
        Ok(cut.then(|| Value {
            line: self.line,
            text: Err("the list doesn't end".to_owned()),
        }))
    }

    fn rest(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    /// Reads on. The longer a value is, the more is read at once: it is measured from its start each time.
    fn read_more(&mut self) -> io::Result<()> {
        self.buffer.drain(..std::mem::take(&mut self.at));
        let piece = std::cmp::max(self.piece, self.buffer.len());
        let piece = u64::try_from(piece).unwrap_or(u64::MAX);
        let mut source = self.source.by_ref().take(piece);
        self.ended = source.read_to_end(&mut self.buffer)? == 0;
        Ok(())
    }

    /// Passes over what was read.
    fn pass(&mut self, length: usize) {
        let passed = &self.buffer[self.at..self.at + length];
        let mut lines = passed.split(|byte| *byte == b'\n');
        let last_line = lines.next_back().unwrap_or_default();
        let line_breaks = lines.count();
        if line_breaks > 0 {
            self.line += line_breaks;
            self.indentation = 0;
            self.indenting = true;
        }
        if self.indenting {
            let indentation = last_line.iter().take_while(|byte| is_blank(**byte)).count();
            self.indentation += indentation;
            self.indenting = indentation == last_line.len();
        }
        self.at += length;
    }

    /// Passes over what is between values; says what comes next.
    fn next_token(&mut self) -> io::Result<Option<u8>> {
        loop {
            let rest = self.rest();
            let blank = rest
                .iter()
                .take_while(|byte| is_blank(**byte) || **byte == b'\n')
                .count();
            if blank > 0 {
                self.pass(blank);
            } else if rest.starts_with(BYTE_ORDER_MARK) {
                self.at += BYTE_ORDER_MARK.len();
            } else if BYTE_ORDER_MARK.starts_with(rest) && !self.ended {
                self.read_more()?;
            } else {
                return Ok(rest.first().copied());
            }
        }
    }

    /// How long the value is that comes next, or what is wrong with it.
    fn measure(&mut self) -> io::Result<Result<usize, String>> {
        loop {
            let mut cursor = Cursor::new(self.rest());
            match cursor.value::<IgnoredAny>() {
                Ok(_) => return Ok(Ok(cursor.at)),
                Err(error) if error.is_eof() && !self.ended => {
                    if self.rest().len() > LONGEST {
                        return Ok(Err(format!("a value is longer than {LONGEST} bytes")));
                    }
                    self.read_more()?;
                }
                Err(error) => {
                    let error = match self.rest().first() {
                        Some(b'{') => EnvelopeError::Json(error),
                        _ => EnvelopeError::NotAnObject,
                    };
                    return Ok(Err(error.to_string()));
                }
            }
        }
    }

    /// How long the head of a page is that comes next, up to its list; nothing if none comes.
    fn measure_page_head(&mut self) -> io::Result<Option<usize>> {
        loop {
            match page_head(self.rest()) {
                Err(error) if error.is_eof() && !self.ended && self.rest().len() <= LONGEST => {
                    self.read_more()?;
                }
                length => return Ok(length.unwrap_or_default()),
            }
        }
    }

    /// Passes over a broken value: its line, and if it is pretty-printed those that are indented deeper, and its brace.
    fn pass_broken(&mut self, reason: String) -> io::Result<Value> {
        let (line, indentation) = (self.line, self.indentation);
        let first_line = self.rest().split(|byte| *byte == b'\n').next();
        let is_pretty = first_line.is_some_and(|line| line.trim_ascii_end() == b"{");
        self.pass_line()?;
        if is_pretty {
            while let Some(byte) = self.next_token()? {
                if self.indentation > indentation {
                    self.pass_line()?;
                    continue;
                }
                if self.indentation == indentation && byte == b'}' {
                    self.pass(1);
                }
                break;
            }
        }
        Ok(Value {
            line,
            text: Err(reason),
        })
    }

    fn pass_line(&mut self) -> io::Result<()> {
        while !self.rest().contains(&b'\n') && !self.ended {
            self.pass(self.rest().len());
            self.read_more()?;
        }
        let rest = self.rest();
        let end = rest.iter().position(|byte| *byte == b'\n');
        self.pass(end.map_or(rest.len(), |end| end + 1));
        Ok(())
    }
}

const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

/// How long the head of a page is, up to and with the bracket of its list; nothing if it is none. An event has an id,
/// and its data is an object.
fn page_head(json: &[u8]) -> serde_json::Result<Option<usize>> {
    let mut cursor = Cursor::new(json);
    if cursor.byte()? != b'{' {
        return Ok(None);
    }
    loop {
        let key: Cow<'_, str> = cursor.value()?;
        if cursor.byte()? != b':' || matches!(&*key, "id" | "event") {
            return Ok(None);
        }
        if key == "data" {
            return Ok((cursor.byte()? == b'[').then_some(cursor.at));
        }
        cursor.value::<IgnoredAny>()?;
        if cursor.byte()? != b',' {
            return Ok(None);
        }
    }
}

/// A place in a piece of JSON. Where that ends too early, the error says so (`is_eof`).
struct Cursor<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    const fn new(json: &'a [u8]) -> Self {
        Self { json, at: 0 }
    }

    /// Passes over a value.
    fn value<T: Deserialize<'a>>(&mut self) -> serde_json::Result<T> {
        let rest = &self.json[self.at..];
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter();
        let value = values
            .next()
            .unwrap_or_else(|| serde_json::from_slice(b""))?;
        self.at += values.byte_offset();
        Ok(value)
    }

    /// Passes over a byte that isn't blank.
    fn byte(&mut self) -> serde_json::Result<u8> {
        let rest = &self.json[self.at..];
        let blank = rest
            .iter()
            .take_while(|byte| byte.is_ascii_whitespace())
            .count();
        let Some(byte) = rest.get(blank) else {
            return serde_json::from_slice(b"");
        };
        self.at += blank + 1;
        Ok(*byte)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The values of a text that is read in pieces of this size at first, with their lines.
    fn values(text: &[u8], piece: usize) -> Vec<(usize, Result<String, String>)> {
        let mut values = Values {
            piece,
            ..Values::new(text)
        };
        let next = || values.next().unwrap();
        std::iter::from_fn(next)
            .map(|value| {
                let text = value.text.map(|text| String::from_utf8(text).unwrap());
                (value.line, text)
            })
            .collect()
    }

    const A: &str = r#"{"id":"a","event":"x","data":{"list":[{}]}}"#;
    const B: &str = r#"{"data":{"id":"org_[{"},"event":"x","id":"b"}"#;
    const C: &str = "{\n  \"id\": \"c\",\n  \"data\": [\n    {}\n  ]\n}";

    /// Section 11: each form of saved events, however it is laid out and wherever a piece ends.
    #[test]
    fn values_are_found_in_every_layout() {
        for (text, expected) in [
            (String::new(), vec![]),
            (" \r\n\t".to_owned(), vec![]),
            (A.to_owned(), vec![(1, A)]),
            (
                format!("\u{feff}{A}\r\n\r\n\u{feff}{B}\r\n"),
                vec![(1, A), (3, B)],
            ),
            (
                format!("{C}\n{C}\n{A}{B}"),
                vec![(1, C), (7, C), (13, A), (13, B)],
            ),
            (
                format!("[{A},\n {B}]\n[]\n[[{A}]]"),
                vec![(1, A), (2, B), (4, A)],
            ),
            (
                format!(r#"{{"object":"list","data":[{A},{B}],"list_metadata":{{"after":[1]}}}}"#),
                vec![(1, A), (1, B)],
            ),
            (
                format!(
                    "{{\n\"list_metadata\": {{\"data\": []}},\n\"data\": [\n{C}\n]}}\n{{\"data\":[]}}{B}"
                ),
                vec![(4, C), (11, B)],
            ),
            (r#"{"data":[],"object":"list"}"#.to_owned(), vec![]),
            (
                r#"{"object":"list"}"#.to_owned(),
                vec![(1, r#"{"object":"list"}"#)],
            ),
            (
                "1 [true,\"x\"]\nnull".to_owned(),
                vec![(1, "1"), (1, "true"), (1, "\"x\""), (2, "null")],
            ),
        ] {
            for piece in [1, 2, 7, PIECE] {
                let expected: Vec<_> = expected
                    .iter()
                    .map(|(line, text)| (*line, Ok((*text).to_owned())))
                    .collect();
                assert_eq!(values(text.as_bytes(), piece), expected, "{text}");
            }
        }
    }

    /// Section 11: what is broken is named by its line, and costs no more than that, or the value that it is in.
    #[test]
    fn what_is_broken_costs_its_line() {
        let object = "the body is not a JSON object";
        let expected_comma = |at| format!("the body is not an event: expected `,` or `}}` at {at}");
        let broken_c = C.replace("\"c\",", "\"c\"");
        for (text, expected) in [
            (
                format!("{A}\nnot json\n{A} x\n}}\n{B}"),
                vec![
                    (1, Ok(A)),
                    (2, Err(object.to_owned())),
                    (3, Ok(A)),
                    (3, Err(object.to_owned())),
                    (4, Err(object.to_owned())),
                    (5, Ok(B)),
                ],
            ),
            // Cut off within a string, behind a value, and where the next lines fit.
            (
                format!("{}\n{A}\n", &A[..8]),
                vec![
                    (1, Err("the body is not an event: control character (\\u0000-\\u001F) found while parsing a string at line 1 column 8".to_owned())),
                    (2, Ok(A)),
                ],
            ),
            (
                format!("{}\n{A}\n", &A[..A.len() - 1]),
                vec![(1, Err(expected_comma("line 2 column 1"))), (2, Ok(A))],
            ),
            (
                format!("{{\"data\":\n{A}\n{B}\n"),
                vec![(1, Err(expected_comma("line 3 column 1"))), (2, Ok(A)), (3, Ok(B))],
            ),
            // In a list, on lines of their own and pretty-printed.
            (
                format!("[{{x}},\n  {A},\n  {{\n    {{\n  }},\n{B}]"),
                vec![
                    (1, Err("the body is not an event: key must be a string at line 1 column 2".to_owned())),
                    (2, Ok(A)),
                    (3, Err("the body is not an event: key must be a string at line 2 column 5".to_owned())),
                    (6, Ok(B)),
                ],
            ),
            (
                format!("{{\"data\":[\n{broken_c},\n{A}],\n \"x\":!\n{B}"),
                vec![
                    (2, Err(expected_comma("line 3 column 3"))),
                    (8, Ok(A)),
                    (9, Err(object.to_owned())),
                    (10, Ok(B)),
                ],
            ),
            (
                format!("[{A},\n{{"),
                vec![
                    (1, Ok(A)),
                    (2, Err("the body is not an event: EOF while parsing an object at line 1 column 1".to_owned())),
                    (2, Err("the list doesn't end".to_owned())),
                ],
            ),
        ] {
            for piece in [1, 2, 7, PIECE] {
                let expected: Vec<_> = expected
                    .iter()
                    .map(|(line, text)| (*line, text.clone().map(str::to_owned)))
                    .collect();
                assert_eq!(values(text.as_bytes(), piece), expected, "{text}");
            }
        }
    }

    proptest! {
        /// Whatever is read, it comes to an end, and whole events are found wherever nothing is open.
        #[test]
        fn anything_comes_to_an_end(
            pieces in proptest::collection::vec(prop_oneof![
                Just(A.as_bytes().to_vec()),
                Just(C.as_bytes().to_vec()),
                "[\\[\\]{}:,\" \n]{0,6}".prop_map(String::into_bytes),
                Just(br#"{"data":["#.to_vec()),
                proptest::collection::vec(any::<u8>(), 0..6),
            ], 0..12),
            piece in 1_usize..20,
        ) {
            let text = pieces.concat();
            let mut values = Values { piece, ..Values::new(&*text) };
            let lines = text.split(|byte| *byte == b'\n').count();
            let mut found = 0;
            while let Some(value) = values.next().unwrap() {
                prop_assert!(value.line <= lines);
                found += 1;
            }
            prop_assert!(found <= text.len() + 1);
        }
    }
}
