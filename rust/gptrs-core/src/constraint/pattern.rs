//! Python's regular expressions, in the syntax of regex-syntax.
//!
//! Both have the same core; what differs is written so that it means what it means in Python's `re`,
//! or refused: a text that the constraint lets out has to pass `re.fullmatch` elsewhere.

// Python's classes, from the Unicode version on that its oldest supported release has: what was a
// letter then is one in every later version.
const DIGIT: &str = r"[\p{Nd}&&\p{Age:14.0}]";
const WORD: &str = r"[[\p{L}\p{N}_]&&\p{Age:14.0}]";
const NOT_DIGIT: &str = r"[^\p{Nd}]";
const NOT_WORD: &str = r"[^\p{L}\p{N}_]";
// White_Space, and the separators U+001C to U+001F.
const SPACE: &str =
    r"[\t-\r\x1c-\x20\x85\xa0\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}]";
const NOT_SPACE: &str =
    r"[^\t-\r\x1c-\x20\x85\xa0\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}]";

/// The same language in the syntax of regex-syntax, or why there is none.
pub(super) fn from_python(pattern: &str) -> Scan<String> {
    let mut scanner = Scanner { rest: pattern, out: String::with_capacity(pattern.len()) };
    scanner.run()?;
    Ok(scanner.out)
}

/// What was scanned, or why it is refused.
type Scan<T = ()> = Result<T, &'static str>;

struct Scanner<'a> {
    rest: &'a str,
    out: String,
}

impl Scanner<'_> {
    fn run(&mut self) -> Scan {
        // What stands before: nothing that can be repeated, an item, or an item's repetition.
        let mut is_repeated = false;
        while let Some(char) = self.take() {
            let repeats = match char {
                '*' | '+' | '?' => true,
                '{' => self.rest_is_count(),
                _ => false,
            };
            match char {
                _ if repeats => {
                    self.repetition(char, is_repeated)?;
                }
                '\\' => self.escape()?,
                '[' => self.class()?,
                '{' => self.out.push_str(r"\{"),
                '(' => self.group()?,
                _ => self.out.push(char),
            }
            is_repeated = repeats;
        }
        Ok(())
    }

    fn take(&mut self) -> Option<char> {
        let char = self.rest.chars().next()?;
        self.rest = &self.rest[char.len_utf8()..];
        Some(char)
    }

    /// Whether what follows a brace makes it a count, and not a character: `2}`, `2,}`, `,3}`, `2,3}`.
    fn rest_is_count(&self) -> bool {
        let Some((count, _)) = self.rest.split_once('}') else { return false };
        let (least, most) = count.split_once(',').unwrap_or((count, "0"));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        !count.is_empty() && is_number(least) && is_number(most)
    }

    /// `*`, `+`, `?` or `{...}`, and the `?` behind it that changes nothing of what matches.
    fn repetition(&mut self, first: char, is_repeated: bool) -> Scan {
        if is_repeated {
            return Err(match first {
                '+' => "a possessive repetition (such as a*+) is not supported",
                _ => "a repetition is repeated; put it into a group",
            });
        }
        if first == '{' {
            let (count, rest) = self.rest.split_once('}').unwrap_or((self.rest, ""));
            self.rest = rest;
            // {,} and {,3} begin at 0.
            let zero = if count.starts_with(',') { "0" } else { "" };
            self.out.extend(["{", zero, count, "}"]);
        } else {
            self.out.push(first);
        }
        if let Some(rest) = self.rest.strip_prefix('?') {
            self.rest = rest;
        }
        Ok(())
    }

    /// What follows an opening parenthesis: flags that change how a pattern is read are refused.
    fn group(&mut self) -> Scan {
        self.out.push('(');
        let Some(kind) = self.rest.strip_prefix('?') else { return Ok(()) };
        if kind.starts_with(['=', '!']) || kind.starts_with("<=") || kind.starts_with("<!") {
            return Err("look-around is not supported");
        }
        if kind.starts_with("P=") || kind.starts_with('(') {
            return Err("references to groups are not supported");
        }
        if kind.starts_with('>') {
            return Err("atomic groups are not supported");
        }
        let flags = kind.bytes().take_while(|&byte| byte.is_ascii_alphabetic() || byte == b'-');
        let num_flags = flags.clone().count();
        if matches!(kind.as_bytes().get(num_flags), Some(b':' | b')'))
            && !kind[..num_flags].bytes().all(|flag| b"ims-".contains(&flag))
        {
            return Err("of the flags, i, m and s are supported");
        }
        // The question mark is not a repetition.
        self.out.push('?');
        self.rest = kind;
        Ok(())
    }

    /// What follows a backslash, outside of a class.
    fn escape(&mut self) -> Scan {
        match self.rest.chars().next() {
            Some('b' | 'B') => Err("word boundaries are not supported"),
            Some('Z') => self.replace(r"\z"),
            Some('1'..='9') => Err("references to groups are not supported"),
            _ => self.escape_anywhere(),
        }
    }

    /// What follows a backslash and means the same inside of a class and outside.
    fn escape_anywhere(&mut self) -> Scan {
        let Some(char) = self.rest.chars().next() else { return Err("it ends with a backslash") };
        match char {
            'd' => self.replace(DIGIT),
            'D' => self.replace(NOT_DIGIT),
            'w' => self.replace(WORD),
            'W' => self.replace(NOT_WORD),
            's' => self.replace(SPACE),
            'S' => self.replace(NOT_SPACE),
            '<' => self.replace("<"),
            '>' => self.replace(">"),
            // The braces of \p{L} and \x{41} are no count.
            'p' | 'P' | 'x' | 'u' | 'U' if self.rest[1..].starts_with('{') => {
                let end = self.rest.find('}').ok_or("a brace is not closed")?;
                self.out.push('\\');
                self.out.push_str(&self.rest[..=end]);
                self.rest = &self.rest[end + 1..];
                Ok(())
            }
            _ if !char.is_ascii() => self.replace(char.encode_utf8(&mut [0; 4])),
            _ => {
                self.out.push('\\');
                self.replace(char.encode_utf8(&mut [0; 4]))
            }
        }
    }

    /// Writes this for the next character.
    #[expect(clippy::unnecessary_wraps, reason = "the arms that call it end a scan or go on")]
    fn replace(&mut self, text: &str) -> Scan {
        self.take();
        self.out.push_str(text);
        Ok(())
    }

    /// A class, from behind its bracket to its end. Python has none inside of it, and no operators.
    fn class(&mut self) -> Scan {
        self.out.push('[');
        if let Some(rest) = self.rest.strip_prefix('^') {
            self.rest = rest;
            self.out.push('^');
        }
        let mut is_first = true;
        loop {
            match self.take().ok_or("a class is not closed")? {
                ']' if !is_first => break,
                '\\' if self.rest.starts_with('b') => self.replace(r"\x08")?,
                '\\' => self.escape_anywhere()?,
                char @ ('[' | ']' | '&' | '~') => {
                    self.out.push('\\');
                    self.out.push(char);
                }
                '-' if self.rest.starts_with('-') => {
                    return Err(r"two hyphens stand in a class: write \- for a hyphen");
                }
                char => self.out.push(char),
            }
            is_first = false;
        }
        self.out.push(']');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_reads_otherwise_is_rewritten() {
        for (python, ours) in [
            (r#"{"a": [0-9]{1,3}}"#, r#"\{"a": [0-9]{1,3}}"#),
            ("a{,3}b{,}c{}d{x}", r"a{0,3}b{0,}c\{}d\{x}"),
            (r"[[&&~~]", r"[\[\&\&\~\~]"),
            (r"[]a][^]a]", r"[\]a][^\]a]"),
            (r"a+?b{2}?\Z", r"a+b{2}\z"),
            (r"\<\>[\b]", r"<>[\x08]"),
            (r"\p{L}{2}(?P<n>a)?", r"\p{L}{2}(?P<n>a)?"),
            (r"\é\.", r"é\."),
        ] {
            assert_eq!(from_python(python).unwrap(), ours);
        }
    }

    #[test]
    fn what_no_automaton_can_do_is_refused_by_name() {
        for (pattern, word) in [
            ("(?=a)a", "look-around"),
            ("(?<!a)a", "look-around"),
            (r"(a)\1", "references"),
            ("(?P<n>a)(?P=n)", "references"),
            (r"\bword", "boundaries"),
            ("a*+", "possessive"),
            ("(?>a)", "atomic"),
            ("(a|b){2}{3}", "repeated"),
            ("(?x)a b", "flags"),
            ("[a", "not closed"),
            ("a\\", "backslash"),
            ("[a--b]", "hyphens"),
        ] {
            let reason = from_python(pattern).unwrap_err();
            assert!(reason.contains(word), "{pattern}: {reason}");
        }
    }
}
