//! The stores that are joined, and whether they may be.

use std::path::{Path, PathBuf};

use super::shown;
use crate::Result;
use crate::build::finish::{ALL, SIDES};
use crate::build::folder::is_unfinished;
use crate::build::plan::{ALL_INPUTS, MILDER, TASK};
use crate::store::Manifest;
use crate::store::files::refused;
use crate::store::manifest::{Dropped, FILE_NAME};

/// The setting that says whether equal documents were left out.
const DEDUPLICATE: &str = "deduplicate";

/// A store, or one stream of it.
pub struct Part {
    pub dir: PathBuf,
    pub manifest: Manifest,
}

impl Part {
    /// The bytes of its tokens.
    pub fn num_bytes(&self) -> u64 {
        self.manifest.num_tokens * self.manifest.dtype.size() as u64
    }
}

/// The names of a store's streams.
pub fn streams_of(dir: &Path) -> &'static [&'static str] {
    let is_split = !dir.join(FILE_NAME).exists() && dir.join(SIDES[0]).join(FILE_NAME).exists();
    if is_split { &SIDES } else { &[ALL] }
}

/// Reads one stream of every part, and refuses what cannot be joined.
///
/// # Errors
/// `Error::Store`.
pub fn read(dirs: &[PathBuf], stream: &str, deduplicate: bool) -> Result<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    for dir in dirs {
        check_holds(dir, stream, &dirs[0])?;
        let dir = if stream == ALL { dir.clone() } else { dir.join(stream) };
        let part = Part { manifest: Manifest::read(&dir)?, dir };
        check_alike(parts.first().unwrap_or(&part), &part)?;
        if deduplicate && part.manifest.shards.iter().any(|shard| shard.hashes_xxh3.is_none()) {
            let reason =
                "has no hashes of its documents, which removing duplicates needs: a part is \
                          built with a task and without duplicates"
                    .to_owned();
            return Err(refused(&part.dir, reason));
        }
        parts.push(part);
    }
    check_tasks(&parts)?;
    Ok(parts)
}

/// Refuses a part that lacks a stream which the first has, and says what is there instead.
fn check_holds(dir: &Path, stream: &str, first: &Path) -> Result<()> {
    let inner = if stream == ALL { dir.to_owned() } else { dir.join(stream) };
    if inner.join(FILE_NAME).exists() {
        return Ok(());
    }
    let first = first.display();
    let reason = if !dir.exists() {
        "is missing: there is no such folder".to_owned()
    } else if is_unfinished(dir) {
        "its build is not finished: the same command goes on with it".to_owned()
    } else if stream == ALL && streams_of(dir) == SIDES {
        format!("has a part for training and one for validation, and {first} has not")
    } else if stream != ALL && dir.join(FILE_NAME).exists() {
        format!("is one store, and {first} has a part for training and one for validation")
    } else {
        format!("is no token store: there is no {}", inner.join(FILE_NAME).display())
    };
    Err(refused(dir, reason))
}

/// Refuses a part that was not made as the first was.
fn check_alike(first: &Part, part: &Part) -> Result<()> {
    let (ours, theirs) = (&part.manifest, &first.manifest);
    let differs = |what: &str, ours: String, theirs: String| {
        let reason = format!("{what} is {ours}, but that of {} is {theirs}", first.dir.display());
        Err(refused(&part.dir, reason))
    };
    if ours.tokenizer != theirs.tokenizer {
        let named = |manifest: &Manifest| {
            let tokenizer = &manifest.tokenizer;
            format!("{:?} ({})", tokenizer.name, tokenizer.fingerprint)
        };
        return differs("its tokenizer", named(ours), named(theirs));
    }
    if ours.dtype != theirs.dtype {
        return differs("its dtype", ours.dtype.descr().into(), theirs.dtype.descr().into());
    }
    for key in ours.settings.keys().chain(theirs.settings.keys()) {
        if key == TASK || MILDER.contains(&key.as_str()) {
            continue;
        }
        let (ours, theirs) = (ours.settings.get(key), theirs.settings.get(key));
        if ours != theirs {
            return differs(&format!("its setting {key:?}"), shown(ours), shown(theirs));
        }
    }
    Ok(())
}

/// Parts of one build have to be all there, in order.
fn check_tasks(parts: &[Part]) -> Result<()> {
    let tasks: Vec<_> = parts.iter().map(|part| part.manifest.settings.get(TASK)).collect();
    let numbers = |task: Option<&serde_json::Value>| -> Option<(u64, u64)> {
        serde_json::from_value(task?.clone()).ok()
    };
    let Some(num_parts) = tasks.iter().find_map(|task| Some(numbers(*task)?.1)) else {
        return Ok(());
    };
    let named = |number| format!("{number}/{num_parts}");
    let missing: Vec<String> = (0..num_parts)
        .filter(|number| !tasks.iter().any(|task| numbers(*task) == Some((*number, num_parts))))
        .take(8)
        .map(named)
        .collect();
    if !missing.is_empty() {
        let reason =
            format!("is part of a build of {num_parts} tasks: {} missing", missing.join(", "));
        return Err(refused(&parts[0].dir, reason));
    }
    for (part, (task, number)) in parts.iter().zip(tasks.into_iter().zip(0..)) {
        if numbers(task) != Some((number, num_parts)) {
            let expected = if number < num_parts { named(number) } else { "no more".to_owned() };
            let found =
                numbers(task).map_or("no task".to_owned(), |(task, of)| format!("{task}/{of}"));
            let reason =
                format!("is of {found}, expected {expected}: all tasks are merged in order");
            return Err(refused(&part.dir, reason));
        }
    }
    Ok(())
}

/// The manifest of all parts, but for what is known when they are joined.
pub fn joined_manifest(parts: &[Part], deduplicate: bool) -> Manifest {
    let mut joined = parts[0].manifest.clone();
    joined.settings.remove(TASK);
    joined.settings.remove(ALL_INPUTS);
    for key in MILDER {
        let is_set = |part: &Part| part.manifest.settings.get(key) == Some(&true.into());
        if let Some(setting) = joined.settings.get_mut(key) {
            *setting = parts.iter().any(is_set).into();
        }
    }
    if let Some(setting) = joined.settings.get_mut(DEDUPLICATE)
        && parts.len() > 1
    {
        *setting = deduplicate.into();
    }
    let all = || parts.iter().map(|part| &part.manifest);
    joined.dropped =
        all().map(|part| part.dropped).fold(Dropped::default(), |sum, dropped| Dropped {
            empty: sum.empty + dropped.empty,
            short: sum.short + dropped.short,
            duplicate: sum.duplicate + dropped.duplicate,
            invalid: sum.invalid + dropped.invalid,
        });
    let is_known = all().all(|part| part.text_bytes > 0 || part.num_tokens == 0);
    joined.text_bytes = if is_known { all().map(|part| part.text_bytes).sum() } else { 0 };
    joined
}
