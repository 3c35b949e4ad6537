//! A tokenizer beside its reference, and what is true of the two.

use gptrs_core::tokenizer::description::{Description, Model};
use gptrs_core::tokenizer::{Isa, Tokenizer, split};

use super::Reference;

/// One tokenizer, or the same for several kinds of processors, and its reference.
pub struct SideBySide {
    tokenizers: Vec<Tokenizer>,
    reference: Reference,
}

impl SideBySide {
    /// For every kind of processor that this one is.
    pub fn gpt2() -> Self {
        let isas = Isa::available().into_iter();
        Self {
            tokenizers: isas.map(|isa| Tokenizer::gpt2().on(isa)).collect(),
            reference: Reference::new(&Tokenizer::gpt2().description()),
        }
    }

    /// `None` if the description is refused. Asserts that it is refused just if it is not sound.
    pub fn of(description: &Description) -> Option<Self> {
        let reference = sound_reference(description);
        let tokenizer = Tokenizer::new(description.clone());
        assert_eq!(tokenizer.is_ok(), reference.is_some(), "{description:?}");
        let (tokenizer, reference) = (tokenizer.ok()?, reference?);
        assert_eq!(tokenizer.description(), *description);
        Some(Self { tokenizers: vec![tokenizer], reference })
    }

    pub fn tokenizers(&self) -> &[Tokenizer] {
        &self.tokenizers
    }

    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Asserts all that is true of a text, whatever was encoded before.
    pub fn agree_on_text(&self, text: &str) {
        let special: Vec<&str> =
            self.tokenizers[0].special_tokens().iter().map(String::as_str).collect();
        let has_special = special.iter().any(|token| text.contains(token));
        let ids = self.reference.encode_ordinary(text);
        let with_special =
            if has_special { self.reference.encode_with_special(text) } else { ids.clone() };
        for tokenizer in &self.tokenizers {
            // The second time its words are known.
            for _ in 0..2 {
                assert_eq!(tokenizer.encode_ordinary(text).ok(), ids, "{text:?}");
            }
            let found = tokenizer.encode(text, &special, &[]).ok();
            assert_eq!(found, with_special, "{text:?}, {special:?} allowed");
            let count = tokenizer.count(text, &special, &mut || Ok(())).ok();
            assert_eq!(count, with_special.as_ref().map(Vec::len), "{text:?}");
            if has_special {
                assert!(tokenizer.encode(text, &[], &special).is_err(), "{text:?}");
            }
            for ids in [&ids, &with_special].into_iter().flatten() {
                assert_eq!(tokenizer.decode(ids).as_deref(), Ok(text.as_bytes()), "{ids:?}");
            }
        }
    }

    /// Asserts that a text is split into the pattern's pieces. Ids may be equal by chance.
    pub fn agree_on_pieces(&self, text: &str) {
        assert!(split(text).eq(self.reference.pieces(text)), "{text:?}");
    }

    /// Asserts that ids are decoded to the bytes of their tokens, or refused.
    pub fn agree_on_ids(&self, ids: &[u16]) {
        let found = self.tokenizers[0].decode(ids).ok();
        assert_eq!(found, self.reference.decode(ids), "{ids:?}");
    }
}

/// The reference, if the description is one of a tokenizer that everybody reads in the same way.
fn sound_reference(description: &Description) -> Option<Reference> {
    description.check().ok()?;
    let reference = Reference::new(description);
    let sound = match &description.model {
        Model::Bpe { merges } => reference.reaches_every_token_by_its_merge(merges),
        Model::Char { .. } => true,
    };
    sound.then_some(reference)
}
