//! One field of a line of JSON. The others are passed over, and nothing is allocated for them.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

/// The text in the field `key` of the object that `line` is: a part of `line` where that can be,
/// else put into `decoded`.
///
/// `replace` puts U+FFFD in the place of a surrogate that is alone.
///
/// # Errors
/// Why the line is no document.
pub fn text_of_line<'a>(
    line: &'a str,
    key: &str,
    replace: bool,
    decoded: &'a mut String,
) -> Result<&'a str, String> {
    decoded.clear();
    let mut json = serde_json::Deserializer::from_str(line);
    let row = Row { key, replace, decoded };
    let found = row.deserialize(&mut json).and_then(|found| json.end().map(|()| found));
    match found.map_err(|error| reason(&error))? {
        Some(Found::InLine(text)) => Ok(text),
        Some(Found::Decoded) => Ok(decoded),
        None => Err(format!("has no field {key:?}")),
    }
}

/// Where the text is.
enum Found<'a> {
    InLine(&'a str),
    Decoded,
}

/// What serde says, with the place in our words: it only knows of one line.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what);
    format!("{what} at column {}", error.column())
}

struct Row<'k> {
    key: &'k str,
    replace: bool,
    decoded: &'k mut String,
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = Option<Found<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, row: D) -> Result<Self::Value, D::Error> {
        row.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = Option<Found<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_it) = map.next_key_seed(Is(self.key))? {
            if is_it {
                // Of a key that comes twice the last counts, as it does in Python.
                let text = Text { key: self.key, replace: self.replace, decoded: self.decoded };
                found = Some(map.next_value_seed(text)?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Whether a key is this one.
struct Is<'k>(&'k str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<bool, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

struct Text<'k> {
    key: &'k str,
    replace: bool,
    decoded: &'k mut String,
}

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = Found<'de>;

    fn deserialize<D: Deserializer<'de>>(self, text: D) -> Result<Found<'de>, D::Error> {
        // As bytes, surrogates that are alone come through, three bytes each.
        if self.replace { text.deserialize_bytes(self) } else { text.deserialize_str(self) }
    }
}

impl<'de> Visitor<'de> for Text<'_> {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string in the field {:?}", self.key)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Found<'de>, E> {
        Ok(Found::InLine(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Found<'de>, E> {
        self.decoded.clear();
        self.decoded.push_str(text);
        Ok(Found::Decoded)
    }

    fn visit_bytes<E>(self, text: &[u8]) -> Result<Found<'de>, E> {
        self.decoded.clear();
        for part in text.utf8_chunks() {
            self.decoded.push_str(part.valid());
            // Of a surrogate's three bytes the first alone cannot start a character.
            if part.invalid().first() == Some(&0xed) {
                self.decoded.push(char::REPLACEMENT_CHARACTER);
            }
        }
        Ok(Found::Decoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn text(line: &str, replace: bool) -> Result<String, String> {
        text_of_line(line, "text", replace, &mut String::new()).map(str::to_owned)
    }

    #[test]
    fn of_a_key_that_comes_twice_the_last_counts() {
        assert_eq!(text(r#"{"text": "a\n", "text": "b"}"#, false), Ok("b".to_owned()));
        assert_eq!(text(r#"{"text": "b", "text": "a\n"}"#, false), Ok("a\n".to_owned()));
    }

    #[test]
    fn surrogates_that_are_alone_are_refused_or_replaced_one_by_one() {
        let line = r#"{"text": "a\ud83d\ude00\ud83d-\ude00\ud83d\ud83d\ude00é"}"#;
        assert!(text(line, false).is_err());
        let expected = "a\u{1f600}\u{fffd}-\u{fffd}\u{fffd}\u{1f600}é";
        assert_eq!(text(line, true), Ok(expected.to_owned()));
    }

    proptest! {
        #[test]
        fn the_text_is_what_was_written_whatever_else_is_in_the_line(
            written in any::<String>(),
            other in any::<String>(),
            ascii in any::<bool>(),
            replace in any::<bool>(),
        ) {
            let row = json!({ "id": [1, { "text": other }], "text": written, "z": Value::Null });
            let mut line = row.to_string();
            if ascii {
                // As Python writes it by default.
                for char in written.chars().chain(other.chars()).filter(|char| !char.is_ascii()) {
                    let units = char.encode_utf16(&mut [0; 2]).to_vec();
                    let escaped: Vec<String> = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
                    line = line.replace(char, &escaped.concat());
                }
            }
            prop_assert_eq!(text(&line, replace), Ok(written));
        }
    }
}
