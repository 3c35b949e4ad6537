//! What a build is to do: settings, tokenizer and inputs, in `plan.json`. A build that is continued
//! has to have the same plan.

use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::Xxh3;

use super::Options;
use crate::Result;
use crate::source::{Input, Kind, Stat, change};
use crate::store::TokenizerInfo;

/// What lets through what others refuse. A build that refused it has met none, so from any place on
/// these may be true.
pub const MILDER: [&str; 2] = ["skip_invalid", "replace_invalid"];

/// Which part of how many.
pub const TASK: &str = "task";

/// What tells whether two parts are of the same inputs: see `fingerprint_of`.
pub const ALL_INPUTS: &str = "all_inputs";

/// All that decides which bytes a build writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub tokenizer: TokenizerInfo,
    /// As they stand in the manifest.
    pub settings: Map<String, Value>,
    pub shard_tokens: u64,
    pub inputs: Vec<PlannedInput>,
}

/// An input and what it was when the build began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedInput {
    pub kind: Kind,
    pub path: String,
    pub stat: Option<Stat>,
}

impl Plan {
    /// Looks at every input.
    ///
    /// # Errors
    /// `Error::File`: one that is to be read is missing, or is a folder.
    pub fn new(tokenizer: TokenizerInfo, inputs: &[Input], options: &Options) -> Result<Self> {
        let planned = |input: &Input| {
            let stat = match input.kind {
                Kind::Rows => Stat::of(&input.path).unwrap_or_default(),
                Kind::Text | Kind::Jsonl => Stat::of(&input.path)?,
            };
            Ok(PlannedInput { kind: input.kind, path: input.path.clone(), stat })
        };
        let inputs: Vec<PlannedInput> = inputs.iter().map(planned).collect::<Result<_>>()?;
        let mut settings = settings(options);
        if options.task.is_some() {
            settings.insert(ALL_INPUTS.to_owned(), fingerprint_of(&inputs).into());
        }
        Ok(Self { tokenizer, settings, shard_tokens: options.shard_tokens, inputs })
    }

    /// The inputs of part `task.0` of `task.1`: in order and side by side, so that the parts one
    /// after the other are the whole, and balanced by their sizes.
    pub fn inputs_of(&self, task: Option<(u64, u64)>) -> Range<usize> {
        let Some((part, parts)) = task else { return 0..self.inputs.len() };
        // One more for each, so that empty inputs have their places, too.
        let sizes = self.inputs.iter().map(|input| input.stat.map_or(0, |stat| stat.size) + 1);
        let total: u128 = sizes.clone().map(u128::from).sum();
        let mut before = 0_u128;
        let parts_in_order = sizes.map(|size| {
            let twice_its_middle = 2 * before + u128::from(size);
            before += u128::from(size);
            (twice_its_middle * u128::from(parts) / (2 * total)) as u64
        });
        let part_of: Vec<u64> = parts_in_order.collect();
        let start = part_of.partition_point(|other| *other < part);
        start..part_of.partition_point(|other| *other <= part)
    }

    /// For each input, how many bytes those of `range` before it have; and how many all of them.
    pub fn bytes_before(&self, range: &Range<usize>) -> Vec<u64> {
        let mut sum = 0;
        let ends = self.inputs.iter().enumerate().map(|(number, input)| {
            let size = input.stat.map_or(0, |stat| stat.size);
            sum += if range.contains(&number) { size } else { 0 };
            sum
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// What of `asked` is not what this build was begun with.
    pub fn difference(&self, asked: &Self) -> Option<String> {
        if self.tokenizer != asked.tokenizer {
            return Some(format!(
                "the tokenizer was {}, now it is {}",
                described(&self.tokenizer),
                described(&asked.tokenizer)
            ));
        }
        if self.shard_tokens != asked.shard_tokens {
            let (then, now) = (self.shard_tokens, asked.shard_tokens);
            return Some(format!("shard_tokens was {then}, now it is {now}"));
        }
        let value = |plan: &Self, key: &str| plan.settings.get(key).cloned().unwrap_or_default();
        let keys = self.settings.keys().chain(asked.settings.keys());
        // Of the inputs there is more to say.
        for key in keys.filter(|key| *key != ALL_INPUTS) {
            let (then, now) = (value(self, key), value(asked, key));
            let is_milder = MILDER.contains(&key.as_str()) && then == false && now == true;
            if then != now && !is_milder {
                return Some(format!("{key} was {then}, now it is {now}"));
            }
        }
        self.difference_of_inputs(asked)
    }

    fn difference_of_inputs(&self, asked: &Self) -> Option<String> {
        for (number, (then, now)) in self.inputs.iter().zip(&asked.inputs).enumerate() {
            if (then.kind, &then.path) != (now.kind, &now.path) {
                return Some(format!(
                    "input {number} was {:?}, now it is {:?}",
                    then.path, now.path
                ));
            }
            if then.stat != now.stat {
                let how = change(then.stat, now.stat);
                return Some(format!("input {:?} has changed: {how}", then.path));
            }
        }
        let (then, now) = (self.inputs.len(), asked.inputs.len());
        (then != now).then(|| format!("there were {then} inputs, now there are {now}"))
    }
}

fn described(tokenizer: &TokenizerInfo) -> String {
    format!("{:?} ({} ids, {})", tokenizer.name, tokenizer.n_vocab, tokenizer.fingerprint)
}

fn settings(options: &Options) -> Map<String, Value> {
    let mut settings = Map::new();
    let mut set = |key: &str, value: Value| drop(settings.insert(key.to_owned(), value));
    set("text_key", json!(options.text_key));
    set("split_on", json!(options.split_on));
    set("skip_invalid", json!(options.skip_invalid));
    set("replace_invalid", json!(options.replace_invalid));
    set("allow_special", json!(options.allow_special));
    set("min_chars", json!(options.min_chars));
    set("deduplicate", json!(options.deduplicate));
    set("val_fraction", json!(options.val_fraction));
    if let Some((part, parts)) = options.task {
        set(TASK, json!([part, parts]));
    }
    settings
}

/// The number of inputs, and XXH3-64 of their kinds, names and sizes. Folders and times may differ
/// from machine to machine.
fn fingerprint_of(inputs: &[PlannedInput]) -> String {
    let mut hash = Xxh3::new();
    for input in inputs {
        let name = Path::new(&input.path).file_name().unwrap_or_default();
        let size = input.stat.map_or(0, |stat| stat.size);
        hash.update(format!("{:?} {size} {}\0", input.kind, name.display()).as_bytes());
    }
    format!("{}-{:016x}", inputs.len(), hash.digest())
}
