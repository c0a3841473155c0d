//! JSON for people.

/// Indents JSON. Nothing else is changed: every name, number and escape stays as it was received, in its order. What is no
/// JSON comes out as it is, more or less.
pub(super) fn indented(json: &str) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    let mut is_in_string = false;
    let mut is_escaped = false;
    let mut characters = json.trim().chars().peekable();
    while let Some(character) = characters.next() {
        if is_in_string {
            text.push(character);
            if is_escaped {
                is_escaped = false;
            } else if character == '\\' {
                is_escaped = true;
            } else if character == '"' {
                is_in_string = false;
            }
            continue;
        }
        match character {
            '{' | '[' => {
                text.push(character);
                while characters.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(end) = characters.next_if(|next| matches!(next, '}' | ']')) {
                    text.push(end);
                } else {
                    depth += 1;
                    new_line(&mut text, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut text, depth);
                text.push(character);
            }
            ',' => {
                text.push(character);
                new_line(&mut text, depth);
            }
            ':' => text.push_str(": "),
            character if character.is_ascii_whitespace() => {}
            character => {
                is_in_string = character == '"';
                text.push(character);
            }
        }
    }
    text
}

/// The deepest indentation: some thousand levels, one inside the other, would be a page of spaces.
const DEEPEST: usize = 20;

fn new_line(text: &mut String, depth: usize) {
    text.push('\n');
    for _ in 0..std::cmp::min(depth, DEEPEST) {
        text.push_str("  ");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_space_is_changed() {
        let json = r#"{"b":1e400,"a" : [ ],"c":{},"d":[1, {"e\"{,":"\u0000: \\"}],"n":12345678901234567890}"#;
        let expected = r#"{
  "b": 1e400,
  "a": [],
  "c": {},
  "d": [
    1,
    {
      "e\"{,": "\u0000: \\"
    }
  ],
  "n": 12345678901234567890
}"#;
        assert_eq!(indented(json), expected);
        assert_eq!(indented(expected), expected);
        assert_eq!(indented("]}\"x"), "\n]\n}\"x");
        assert!(indented(&"[".repeat(5_000)).len() < 5_000 * 50);
    }
}
