//! The shape of a `tokenizer.json`, as far as it is of interest, whoever wrote it.
//!
//! Strings borrow from the file where they have no escapes. What is too long to be supported is
//! counted, not kept; what may have any shape is a `Value`, to be named in an error. serde_json
//! refuses values more than 128 deep, so no nesting can overflow the stack.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};
use serde_json::Value;

use super::super::description::MAX_IDS;

#[derive(Deserialize)]
#[serde(expecting = "a tokenizer, which is a JSON object")]
pub struct File<'a> {
    #[serde(default)]
    pub version: Value,
    #[serde(default)]
    pub truncation: Value,
    #[serde(default)]
    pub padding: Value,
    #[serde(borrow)]
    pub added_tokens: Option<Vec<AddedToken<'a>>>,
    #[serde(default)]
    pub normalizer: Value,
    #[serde(default)]
    pub pre_tokenizer: Value,
    #[serde(default)]
    pub post_processor: Value,
    #[serde(default)]
    pub decoder: Value,
    #[serde(borrow)]
    pub model: Model<'a>,
}

#[derive(Deserialize)]
#[serde(expecting = "an added token, which is a JSON object")]
#[expect(clippy::struct_excessive_bools, reason = "they are the file's")]
pub struct AddedToken<'a> {
    pub id: u64,
    #[serde(borrow)]
    pub content: Cow<'a, str>,
    #[serde(default)]
    pub single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    #[serde(default)]
    pub normalized: bool,
    #[serde(default)]
    pub special: bool,
}

/// A model of any type: all keys of those supported.
#[derive(Deserialize)]
#[serde(expecting = "a model, which is a JSON object")]
pub struct Model<'a> {
    #[serde(rename = "type", borrow)]
    pub kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub gptrs_fingerprint: Option<Cow<'a, str>>,
    #[serde(default)]
    pub dropout: Value,
    #[serde(default)]
    pub unk_token: Value,
    #[serde(default)]
    pub continuing_subword_prefix: Value,
    #[serde(default)]
    pub end_of_word_suffix: Value,
    #[serde(default)]
    pub byte_fallback: Value,
    #[serde(default)]
    pub ignore_merges: Value,
    #[serde(borrow)]
    pub vocab: Option<Vocab<'a>>,
    #[serde(borrow)]
    pub merges: Option<Capped<Merge<'a>>>,
}

/// The first `MAX_IDS` of some items, and how many there are.
pub struct Capped<T> {
    pub items: Vec<T>,
    pub len: usize,
}

impl<T> Capped<T> {
    const EMPTY: Self = Self { items: Vec::new(), len: 0 };

    fn push(&mut self, item: T) {
        if self.len < MAX_IDS {
            self.items.push(item);
        }
        self.len += 1;
    }
}

/// The tokens and their ids, in the file's order.
pub type Vocab<'a> = Capped<(Cow<'a, str>, u64)>;

/// A string that need not be copied; `Cow` alone always copies inside of other types.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabVisitor)
    }
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = Vocab<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a vocabulary, which is a JSON object of tokens and their ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut tokens = Capped::EMPTY;
        while let Some((Text(token), id)) = map.next_entry()? {
            tokens.push((token, id));
        }
        Ok(tokens)
    }

    /// Of a Unigram model, which is yet to be refused by its name.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Capped::EMPTY)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Capped<Merge<'a>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(MergesVisitor)
    }
}

struct MergesVisitor;

impl<'de> Visitor<'de> for MergesVisitor {
    type Value = Capped<Merge<'de>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("merges, which are a JSON array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut merges = Capped::EMPTY;
        while let Some(merge) = list.next_element()? {
            merges.push(merge);
        }
        Ok(merges)
    }
}

/// The two tokens of a merge: `["a", "b"]`, or in older files `"a b"`.
pub struct Merge<'a>(pub Cow<'a, str>, pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = Merge<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a merge, which is a pair of tokens")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        match text.split_once(' ') {
            Some((left, right)) => Ok(Merge(left.to_owned().into(), right.to_owned().into())),
            None => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let (left, right) = (list.next_element()?, list.next_element()?);
        match (left, right, list.next_element::<IgnoredAny>()?) {
            (Some(Text(left)), Some(Text(right)), None) => Ok(Merge(left, right)),
            _ => Err(Error::custom("a merge is a pair of tokens")),
        }
    }
}
