//! The tokenizer once more, slow and plain, to hold the crate's against.
//!
//! ```text
//!   text ──► pieces       the pattern itself, in a regex engine
//!   piece ─► its bytes ─► join the neighbours that are the lowest-ranked token ─► … ─► ids
//! ```
//!
//! It knows the tokens' bytes and nothing else: no pairs, no cache, no blocks. It takes quadratic
//! time. The fuzz targets use it too.

pub mod agreement;

use std::collections::HashMap;
use std::sync::LazyLock;

use fancy_regex::Regex;
use gptrs_core::tokenizer::description::{Description, Model};

/// As it was published with GPT-2, and as tiktoken still has it.
static GPT2_PATTERN: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
});

/// Every character is a piece.
static CHAR_PATTERN: LazyLock<Regex> = LazyLock::new(|| regex("(?s)."));

/// No token, as a rank.
const NO_TOKEN: u32 = u32::MAX;

/// A tokenizer that is described.
pub struct Reference {
    pattern: &'static Regex,
    /// Every token's bytes; the index is its id, and its rank. The special ones come last.
    tokens: Vec<Vec<u8>>,
    /// The ordinary tokens by their bytes.
    ranks: HashMap<Vec<u8>, u32>,
    special_tokens: Vec<String>,
}

impl Reference {
    /// The tokens of a description that `check` does not refuse.
    pub fn new(description: &Description) -> Self {
        let (pattern, mut tokens) = match &description.model {
            Model::Bpe { merges } => (&*GPT2_PATTERN, bpe_tokens(merges)),
            Model::Char { chars } => {
                (&*CHAR_PATTERN, chars.iter().map(|char| char.to_string().into_bytes()).collect())
            }
        };
        let ranks = tokens.iter().cloned().zip(0..).collect();
        let special_tokens = description.special_tokens.clone();
        tokens.extend(special_tokens.iter().map(|token| token.clone().into_bytes()));
        Self { pattern, tokens, ranks, special_tokens }
    }

    /// Every token's bytes, in order of their ids.
    pub fn tokens(&self) -> &[Vec<u8>] {
        &self.tokens
    }

    /// What `text` is split into.
    pub fn pieces<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        let pieces = self.pattern.find_iter(text);
        pieces.map(|piece| piece.expect("within the backtracking limit").as_str())
    }

    /// The ids of `text`, in which nothing is special; `None` if it has an unknown character.
    pub fn encode_ordinary(&self, text: &str) -> Option<Vec<u16>> {
        let mut ids = Vec::new();
        for piece in self.pieces(text).map(str::as_bytes) {
            match self.ranks.get(piece) {
                Some(id) => ids.push(*id as u16),
                None => ids.extend(self.merge(piece, NO_TOKEN)?),
            }
        }
        Some(ids)
    }

    /// The ids of `text`, in which every special token that is written out is one id: the leftmost
    /// first, the longest of those that start together.
    pub fn encode_with_special(&self, text: &str) -> Option<Vec<u16>> {
        let (mut ids, mut rest) = (Vec::new(), text);
        while let Some((start, _, id)) = self
            .special_tokens
            .iter()
            .zip(self.ranks.len()..)
            .filter_map(|(token, id)| Some((rest.find(token)?, usize::MAX - token.len(), id)))
            .min()
        {
            ids.extend(self.encode_ordinary(&rest[..start])?);
            ids.push(id as u16);
            rest = &rest[start + self.tokens[id].len()..];
        }
        ids.extend(self.encode_ordinary(rest)?);
        Some(ids)
    }

    /// The bytes of `ids`, or `None` if one of them is not in the vocabulary.
    pub fn decode(&self, ids: &[u16]) -> Option<Vec<u8>> {
        let tokens: Option<Vec<&[u8]>> =
            ids.iter().map(|id| self.tokens.get(usize::from(*id)).map(Vec::as_slice)).collect();
        Some(tokens?.concat())
    }

    /// Whether merging with the tokens before it leaves a merge's two tokens side by side, for
    /// every merge. Otherwise it depends on who merges: tiktoken, which joins any tokens that are
    /// a token together, or Hugging Face's library, which joins the two that are written down.
    pub fn reaches_every_token_by_its_merge(&self, merges: &[(u16, u16)]) -> bool {
        (256..).zip(merges).all(|(id, &(left, right))| {
            self.merge(&self.tokens[id as usize], id) == Some(vec![left, right])
        })
    }

    /// What remains of a piece when no neighbours together are a token of a rank below `limit`.
    fn merge(&self, piece: &[u8], limit: u32) -> Option<Vec<u16>> {
        let rank = |span: &[usize]| {
            let rank = self.ranks.get(&piece[*span.first()?..*span.last()?]);
            rank.copied().filter(|rank| *rank < limit)
        };
        // Token i is piece[bounds[i]..bounds[i + 1]], and pairs[i] the rank of it and the next.
        let mut bounds: Vec<usize> = (0..=piece.len()).collect();
        let pair = |bounds: &[usize], left: usize| {
            bounds.get(left..left + 3).and_then(rank).unwrap_or(NO_TOKEN)
        };
        let mut pairs: Vec<u32> = (0..piece.len()).map(|left| pair(&bounds, left)).collect();
        while let Some((left, _)) = pairs
            .iter()
            .enumerate()
            .filter(|(_, rank)| **rank != NO_TOKEN)
            .min_by_key(|(_, rank)| **rank)
        {
            bounds.remove(left + 1);
            pairs.remove(left);
            pairs[left] = pair(&bounds, left);
            if left > 0 {
                pairs[left - 1] = pair(&bounds, left - 1);
            }
        }
        bounds.windows(2).map(|token| rank(token).map(|id| id as u16)).collect()
    }
}

/// The single bytes in GPT-2's order, visible Latin-1 first; then what each merge makes.
fn bpe_tokens(merges: &[(u16, u16)]) -> Vec<Vec<u8>> {
    let visible = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let bytes = (0..=255).filter(visible).chain((0..=255).filter(|byte| !visible(byte)));
    let mut tokens: Vec<Vec<u8>> = bytes.map(|byte| vec![byte]).collect();
    for (left, right) in merges {
        tokens.push([&*tokens[usize::from(*left)], &*tokens[usize::from(*right)]].concat());
    }
    tokens
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a regex")
}
