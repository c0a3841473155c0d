//! The `.env` file of the working directory.
//!
//! It is parsed here: dotenvy, like most, expands `$`, and drops quotes and backslashes from the middle of a value,
//! so that a secret with such a character would arrive as another one. What dotenvy still does is set the
//! variables: that takes unsafe code, which this crate forbids.
//!
//! ```text
//! # a comment
//! NAME=value                  taken as it stands, up to white space; # begins a comment behind that
//! export NAME='a value'       taken as it stands, up to the quote
//! NAME="a \"value\"\n"        \" \' \\ \$ \n and an escaped space are escapes
//! ```

use std::fmt::Write;
use std::io;

use crate::config::ConfigError;

/// Sets what `.env` has and the environment lacks. An empty variable is one that the environment lacks.
///
/// # Errors
/// The file can't be read or parsed. The error doesn't repeat the line, which may hold a secret.
pub fn load() -> Result<(), ConfigError> {
    let text = match std::fs::read_to_string(".env") {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let mut variables = parse(&text).map_err(|line| {
        wrong(format!(
            "line {line}: expected NAME=value, with quotes around a value that has spaces"
        ))
    })?;
    variables.retain(|(name, _)| std::env::var_os(name).is_none_or(|value| value.is_empty()));
    dotenvy::from_read_override(render(&variables).as_bytes())
        .map_err(|_| wrong("the variables can't be set"))
}

fn wrong(problem: impl Into<String>) -> ConfigError {
    ConfigError {
        variable: ".env",
        problem: problem.into(),
    }
}

/// The variables of a file, or the number of the line that is none.
fn parse(text: &str) -> Result<Vec<(&str, String)>, usize> {
    let mut variables: Vec<(&str, String)> = Vec::new();
    // Editors and shells of Windows begin a file with a byte order mark.
    let mut rest = text.trim_start_matches('\u{feff}');
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Ok(variables);
        }
        if rest.starts_with('#') {
            rest = rest.split_once('\n').map_or("", |(_, next)| next);
            continue;
        }
        let line = || text[..text.len() - rest.len()].matches('\n').count() + 1;
        let (name, value, next) = entry(rest).ok_or_else(line)?;
        // The first one counts.
        if variables.iter().all(|(known, _)| *known != name) {
            variables.push((name, value));
        }
        rest = next;
    }
}

/// Name and value of the entry that the text begins with, and what follows its line.
fn entry(text: &str) -> Option<(&str, String, &str)> {
    const SPACES: [char; 2] = [' ', '\t'];
    let (mut name, mut rest) = name(text)?;
    if name == "export" && !rest.trim_start_matches(SPACES).starts_with('=') {
        (name, rest) = self::name(rest.trim_start_matches(SPACES))?;
    }
    let rest = rest.trim_start_matches(SPACES).strip_prefix('=')?;
    let begin = rest.trim_start_matches(SPACES);
    let (value, rest) = if let Some(quoted) = begin.strip_prefix('\'') {
        let (value, rest) = quoted.split_once('\'')?;
        (value.to_owned(), rest)
    } else if let Some(quoted) = begin.strip_prefix('"') {
        in_double_quotes(quoted)?
    } else if begin.starts_with('#') && begin.len() < rest.len() {
        (String::new(), rest)
    } else {
        let end = begin.find(|c: char| c.is_ascii_whitespace());
        let (value, rest) = begin.split_at(end.unwrap_or(begin.len()));
        (value.to_owned(), rest)
    };
    let (remainder, next) = rest.split_once('\n').unwrap_or((rest, ""));
    let comment = remainder.trim_ascii();
    let complete = comment.is_empty()
        || comment.starts_with('#') && remainder.starts_with(|c: char| c.is_ascii_whitespace());
    // A variable of a process can hold no NUL.
    (complete && !value.contains('\0')).then_some((name, value, next))
}

fn name(text: &str) -> Option<(&str, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.')
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let first = name.chars().next()?;
    (first.is_ascii_alphabetic() || first == '_').then_some((name, rest))
}

/// The value up to the closing quote, and what follows that.
fn in_double_quotes(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.chars();
    loop {
        match characters.next()? {
            '"' => return Some((value, characters.as_str())),
            '\\' => value.push(match characters.next()? {
                'n' => '\n',
                escaped @ ('"' | '\'' | '\\' | '$' | ' ') => escaped,
                _ => return None,
            }),
            character => value.push(character),
        }
    }
}

/// As dotenvy reads it without a change.
fn render(variables: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (name, value) in variables {
        let value = value
            .replace('\\', r"\\")
            .replace('"', "\\\"")
            .replace('$', r"\$")
            .replace('\n', r"\n");
        writeln!(text, "{name}=\"{value}\"").expect("a String can always grow");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Section 11: a value is what stands there.
    #[test]
    fn values_are_taken_as_they_stand() {
        for (line, expected) in [
            ("A=plain", "plain"),
            ("A=whsec_a$b3C", "whsec_a$b3C"),
            ("A=$HOME-${HOME}", "$HOME-${HOME}"),
            ("A='$HOME'", "$HOME"),
            ("A=\"$HOME\"", "$HOME"),
            (r"A=back\slash\n", r"back\slash\n"),
            (r"A='back\slash\n'", r"back\slash\n"),
            (r#"A="a \"b\" \\ \$c\nd\ e""#, "a \"b\" \\ $c\nd e"),
            ("A=it's", "it's"),
            (r#"A=a"b"c"#, r#"a"b"c"#),
            ("A='two words'", "two words"),
            ("A=\"it's\"", "it's"),
            ("A='two\r\nlines'", "two\r\nlines"),
            ("A=a=b==", "a=b=="),
            ("A=", ""),
            ("A=''", ""),
            ("A=b # comment", "b"),
            ("A=b\t#comment", "b"),
            ("A='b' # it's a comment", "b"),
            ("A= # comment", ""),
            ("A=b#c", "b#c"),
            ("A=#b", "#b"),
            ("  A \t=  b  ", "b"),
            ("export A=b", "b"),
            ("export\tA = b", "b"),
            ("\u{feff}A=b\r", "b"),
            ("# it's a comment\r\n\r\n  # another\nA=b\n", "b"),
            ("A=first\nA=second", "first"),
            ("A=Zoë", "Zoë"),
        ] {
            let parsed = parse(line).unwrap_or_else(|_| panic!("{line:?}"));
            assert_eq!(parsed, [("A", expected.to_owned())], "{line:?}");
        }
        assert_eq!(
            parse("export=a\n_B.1=c\r\n#D=e\nF='g'"),
            Ok(vec![
                ("export", "a".to_owned()),
                ("_B.1", "c".to_owned()),
                ("F", "g".to_owned()),
            ])
        );
    }

    /// Section 11: a line that is none is named by its number alone.
    #[test]
    fn a_line_that_is_none_is_numbered() {
        for (text, line) in [
            ("A=two words", 1),
            ("A=b\nhunter2\n", 2),
            ("A='two\nlines'\n\n=b", 4),
            ("A='open\nB=c", 1),
            ("# comment\nA=\"open", 2),
            ("A=\"b\\x\"", 1),
            ("A='b'c", 1),
            ("A='b'#c", 1),
            ("1A=b", 1),
            ("A-B=c", 1),
            ("export", 1),
            ("A: b", 1),
            ("A=b\0c", 1),
        ] {
            assert_eq!(parse(text), Err(line), "{text:?}");
        }
    }

    /// dotenvy, which sets them, reads the variables as they were parsed.
    #[test]
    fn dotenvy_changes_nothing() {
        let variables: Vec<(&str, String)> = [
            "",
            "plain",
            "$HOME ${HOME} \\$ $",
            "\"quotes\" and 'quotes'",
            "back\\slash \\n",
            "two\nlines\r\nand\rmore\n",
            " # no comment ",
            "\u{feff}Zoë\t",
        ]
        .map(|value| ("A", value.to_owned()))
        .into();
        let read: Vec<(String, String)> = dotenvy::from_read_iter(render(&variables).as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(read.len(), variables.len());
        for ((_, read), (_, expected)) in read.iter().zip(&variables) {
            assert_eq!(read, expected);
        }
    }
}
