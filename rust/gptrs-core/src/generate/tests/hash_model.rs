//! A model whose logits are a hash of what a slot holds: any mix-up of slots or windows changes them.

use crate::generate::{Extend, Limits, Logits, NextLogits};

#[derive(Debug)]
pub struct HashModel {
    pub slots: Vec<Vec<u32>>,
    limits: Limits,
    rows: Vec<f32>,
    /// How many times `extend` was called.
    pub calls: usize,
    pub tokens_read: usize,
    /// The most tokens that one `extend` took.
    pub most_at_once: usize,
    /// The call that fails.
    pub fails_at: Option<usize>,
    /// A slot that ends with this token has a row of NaN.
    pub poison: Option<u32>,
}

impl HashModel {
    pub fn new(vocab_size: usize, context_length: usize, slots: usize) -> Self {
        Self {
            slots: vec![Vec::new(); slots],
            limits: Limits { vocab_size, context_length, slots },
            rows: Vec::new(),
            calls: 0,
            tokens_read: 0,
            most_at_once: 0,
            fails_at: None,
            poison: None,
        }
    }

    /// Distinct numbers between -2 and 2, one a token.
    pub fn logits_after(tokens: &[u32], vocab_size: usize) -> impl Iterator<Item = f32> {
        let mix = |hash: u64, token: u64| {
            let hash = (hash ^ (token + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            hash ^ (hash >> 29)
        };
        let hash = tokens.iter().fold(17, |hash, &token| mix(hash, u64::from(token)));
        (0..vocab_size as u64)
            .map(move |id| (mix(mix(hash, id), 7) >> 40) as f32 / (1 << 22) as f32 - 2.0)
    }
}

impl NextLogits for HashModel {
    type Error = String;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn extend(&mut self, work: &[Extend<'_>]) -> Result<(), String> {
        self.calls += 1;
        if self.fails_at == Some(self.calls) {
            return Err(format!("call {} fails", self.calls));
        }
        assert!(work.is_sorted_by(|a, b| a.slot < b.slot) && !work.is_empty());
        self.rows.clear();
        let num_tokens = work.iter().map(|w| w.tokens.len()).sum();
        self.tokens_read += num_tokens;
        self.most_at_once = self.most_at_once.max(num_tokens);
        for &Extend { slot, tokens, wanted } in work {
            assert!(!tokens.is_empty() && wanted <= 1);
            let held = &mut self.slots[slot];
            held.extend_from_slice(tokens);
            assert!(held.len() <= self.limits.context_length);
            if wanted == 1 {
                let is_poisoned = self.poison.is_some_and(|token| held.ends_with(&[token]));
                let row = Self::logits_after(held, self.limits.vocab_size);
                self.rows.extend(row.map(|v| if is_poisoned { f32::NAN } else { v }));
            }
        }
        Ok(())
    }

    fn logits(&self) -> Logits<'_> {
        Logits::F32(&self.rows, self.limits.vocab_size)
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<(), String> {
        assert_ne!(from, to);
        self.slots[to] = self.slots[from][..len].to_vec();
        Ok(())
    }

    fn truncate(&mut self, slot: usize, len: usize) -> Result<(), String> {
        self.slots[slot].truncate(len);
        Ok(())
    }
}
