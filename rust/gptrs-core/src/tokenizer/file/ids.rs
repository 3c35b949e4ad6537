//! Which token has which id: each id is some token's, and no token has two.

use std::collections::HashMap;

use super::super::description::{MAX_IDS, shortened};
use super::json::{AddedToken, Vocab};
use crate::{Error, Result};

/// A file's tokens both ways.
pub struct Ids<'f> {
    tokens: Vec<Option<&'f str>>,
    ids: HashMap<&'f str, u16>,
}

impl<'f> Ids<'f> {
    /// Of `num_ordinary` tokens in a vocabulary, and the special tokens after them, which the
    /// vocabulary may have as well.
    pub fn new(
        vocab: &'f Vocab<'_>,
        special_tokens: &[&'f AddedToken<'_>],
        num_ordinary: usize,
    ) -> Result<Self> {
        let num_ids = num_ordinary + special_tokens.len();
        if num_ids > MAX_IDS {
            return refuse(format!("there are {num_ids} ids; expected at most {MAX_IDS}"));
        }
        let mut all = Self { tokens: vec![None; num_ids], ids: HashMap::with_capacity(num_ids) };
        for (expected, token) in (num_ordinary..).zip(special_tokens) {
            if token.id != expected as u64 {
                return refuse(format!(
                    "the id of the special token {:?} is {}; expected {expected}, as special \
                     tokens come after the {num_ordinary} others",
                    shortened(&token.content),
                    token.id
                ));
            }
            all.insert(&token.content, token.id)?;
        }
        for (token, id) in &vocab.items {
            all.insert(token, *id)?;
        }
        match all.tokens.iter().position(Option::is_none) {
            None => Ok(all),
            Some(id) => refuse(format!(
                "no token has the id {id}; expected one for each of the {num_ids} ids"
            )),
        }
    }

    /// A token's id.
    pub fn id(&self, token: &str) -> Option<u16> {
        self.ids.get(token).copied()
    }

    /// An id's token, which there is for all ids below the number that `new` was told.
    pub fn token(&self, id: usize) -> &'f str {
        self.tokens[id].unwrap_or_default()
    }

    /// A special token may come twice, from the vocabulary as well, but with one id.
    fn insert(&mut self, token: &'f str, id: u64) -> Result<()> {
        let num_ids = self.tokens.len();
        let Some(slot) = usize::try_from(id).ok().and_then(|id| self.tokens.get_mut(id)) else {
            return refuse(format!(
                "the id of {:?} is {id}; expected one below {num_ids}, for which there are \
                 merges, characters or added tokens",
                shortened(token)
            ));
        };
        match (self.ids.insert(token, id as u16), *slot) {
            (Some(other), _) if u64::from(other) != id => {
                let token = shortened(token);
                refuse(format!("the ids of {token:?} are {other} and {id}; expected one"))
            }
            (None, Some(other)) => refuse(format!(
                "the tokens of id {id} are {:?} and {:?}; expected one",
                shortened(other),
                shortened(token)
            )),
            _ => {
                *slot = Some(token);
                Ok(())
            }
        }
    }
}

fn refuse<T>(reason: String) -> Result<T> {
    Err(Error::TokenizerFile(reason))
}
