//! What the fuzz targets and their seeds share: the slow reference of the core's tests, and what
//! is true of any file.

#[path = "../../rust/gptrs-core/tests/reference/mod.rs"]
pub mod reference;

use gptrs_core::tokenizer::description::Description;
use gptrs_core::tokenizer::file::{from_json, to_json};

/// Asserts that what is read from a file, if it is not refused, can be written and read again.
/// Returns it.
pub fn read_twice(json: &[u8]) -> Option<Description> {
    let description = from_json(json).ok()?;
    let written = to_json(&description).expect("what was read can be written");
    assert_eq!(from_json(written.as_bytes()).as_ref(), Ok(&description));
    Some(description)
}

/// A file as others write it: nothing in it tells that it was altered.
pub fn without_fingerprint(json: &str, description: &Description) -> String {
    json.replace(&format!(r#""gptrs_fingerprint":"{}","#, description.fingerprint()), "")
}
