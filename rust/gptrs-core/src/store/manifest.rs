//! `manifest.json`: what a store holds. It is written last, so a folder that has one is whole.

use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::{Error, Result};

/// The manifest's file name.
pub const FILE_NAME: &str = "manifest.json";

/// The tokenizer's file beside it.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// What `format` says in every manifest.
pub const FORMAT: &str = "gptrs-store";

/// `Description::fingerprint` of GPT-2's tokenizer.
const GPT2_FINGERPRINT: &str = "dd7b60dba5babb142968664f522eee4fdf2f37b080d5c266358c5bea96c9f84d";

/// The version that this code writes, and the last that it reads.
pub const VERSION: u32 = 1;

/// How ids are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Vocabularies of up to 65,536 ids.
    Uint16,
    /// Larger ones.
    Uint32,
}

impl Dtype {
    /// The smaller one that has room for a vocabulary's ids.
    pub fn holding(n_vocab: usize) -> Self {
        if n_vocab <= 1 << 16 { Self::Uint16 } else { Self::Uint32 }
    }

    /// Bytes an id.
    pub fn size(self) -> usize {
        match self {
            Self::Uint16 => 2,
            Self::Uint32 => 4,
        }
    }

    /// NumPy's name for it in a file.
    pub fn descr(self) -> &'static str {
        match self {
            Self::Uint16 => "<u2",
            Self::Uint32 => "<u4",
        }
    }
}

/// What a store holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// `FORMAT`.
    pub format: String,
    /// `VERSION` or lower.
    pub version: u32,
    /// What made the ids.
    pub tokenizer: TokenizerInfo,
    /// How the ids are stored.
    pub dtype: Dtype,
    /// Tokens in all shards.
    pub num_tokens: u64,
    /// Documents in all shards.
    pub num_documents: u64,
    /// The bytes of the documents' text, in UTF-8; 0 if unknown.
    pub text_bytes: u64,
    /// What of the input is not here, and why.
    pub dropped: Dropped,
    /// How documents were chosen and cut.
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// The shards in order.
    pub shards: Vec<Shard>,
}

/// What made the ids, and tells whether another tokenizer is the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerInfo {
    /// Its name, such as `gpt2`.
    pub name: String,
    /// `Description::fingerprint`.
    pub fingerprint: String,
    /// The number of ids.
    pub n_vocab: usize,
    /// The id that follows every document, if there is one.
    pub end_of_text: Option<u32>,
    /// XXH3-64 of `tokenizer.json`; 0 where there is no such file.
    #[serde(with = "hex")]
    pub json_xxh3: u64,
}

impl TokenizerInfo {
    /// GPT-2's, which other programs' files are taken for.
    pub fn gpt2() -> Self {
        Self {
            name: "gpt2".to_owned(),
            fingerprint: GPT2_FINGERPRINT.to_owned(),
            n_vocab: 50_257,
            end_of_text: Some(50_256),
            json_xxh3: 0,
        }
    }
}

/// Documents that were left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Without any text.
    pub empty: u64,
    /// Shorter than was asked for.
    pub short: u64,
    /// Equal to an earlier one.
    pub duplicate: u64,
    /// Rows that are no documents, skipped on request.
    pub invalid: u64,
}

/// One file of tokens, and one of the ends of the documents that end in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Its tokens.
    pub num_tokens: u64,
    /// The documents that end in it.
    pub num_documents: u64,
    /// XXH3-64 of the token file behind its header.
    #[serde(with = "hex")]
    pub tokens_xxh3: u64,
    /// XXH3-64 of the file of ends behind its header.
    #[serde(with = "hex")]
    pub ends_xxh3: u64,
    /// XXH3-64 of the file of hashes behind its header, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_hex")]
    pub hashes_xxh3: Option<u64>,
}

/// The name of a shard's file of tokens.
pub fn tokens_name(shard: usize) -> String {
    format!("tokens-{shard:05}.npy")
}

/// The name of a shard's file of document ends.
pub fn ends_name(shard: usize) -> String {
    format!("ends-{shard:05}.npy")
}

/// The name of a shard's file of document hashes, which only a part of a larger store has.
pub fn hashes_name(shard: usize) -> String {
    format!("hashes-{shard:05}.npy")
}

impl Manifest {
    /// Reads `DIR/manifest.json`.
    ///
    /// # Errors
    /// `Error::Store`: it is missing, damaged, foreign, or of a newer version.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE_NAME);
        let refused = |reason| Error::Store { path: path.display().to_string(), reason };
        let text = std::fs::read(&path).map_err(|error| refused(error.to_string()))?;
        let found: Header = serde_json::from_slice(&text)
            .map_err(|error| refused(format!("is no manifest of a store: {error}")))?;
        if found.format != FORMAT {
            return Err(refused(format!("its format is {:?}, expected {FORMAT:?}", found.format)));
        }
        if found.version > VERSION {
            return Err(refused(format!(
                "its version is {}; this gptrs reads up to {VERSION}: a newer gptrs wrote it",
                found.version
            )));
        }
        let content = &text[..text.len().saturating_sub(CHECKSUM_BYTES)];
        if text[content.len()..] != *checksum_line(content).as_bytes() {
            return Err(refused("is damaged: its checksum is not that of its content".to_owned()));
        }
        let manifest: Self = serde_json::from_slice(&text)
            .map_err(|error| refused(format!("is damaged: {error}")))?;
        manifest.check_totals().map_err(refused)?;
        Ok(manifest)
    }

    /// Its content, to be written whole or not at all. The last field is the checksum of what comes
    /// before it.
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self).unwrap_or_default();
        let content = json.trim_end_matches(['\n', '}']);
        format!("{content}{}", checksum_line(content.as_bytes()))
    }

    fn check_totals(&self) -> std::result::Result<(), String> {
        let sum = |count: fn(&Shard) -> u64| {
            self.shards.iter().try_fold(0_u64, |sum, shard| sum.checked_add(count(shard)))
        };
        let found = (sum(|shard| shard.num_tokens), sum(|shard| shard.num_documents));
        if found == (Some(self.num_tokens), Some(self.num_documents)) {
            return Ok(());
        }
        Err(format!(
            "is damaged: it says {} tokens and {} documents, and its shards have other totals",
            self.num_tokens, self.num_documents
        ))
    }
}

/// The end of a manifest whose other text is `content`.
fn checksum_line(content: &[u8]) -> String {
    format!(",\n  \"xxh3\": \"{:016x}\"\n}}\n", xxh3_64(content))
}

/// The length of `checksum_line`.
const CHECKSUM_BYTES: usize = 33;

/// What every version has.
#[derive(Deserialize)]
struct Header {
    format: String,
    version: u32,
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    // Serde hands over a reference to the field.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{value:016x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

mod optional_hex {
    use serde::{Deserializer, Serializer};

    // Serde hands over a reference to the field.
    #[allow(clippy::ref_option)]
    pub fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::hex::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u64>, D::Error> {
        super::hex::deserialize(deserializer).map(Some)
    }
}
