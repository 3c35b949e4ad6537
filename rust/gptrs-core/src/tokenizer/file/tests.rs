//! What is written and read; the tokenizers library's own view of it is tested from Python.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::description::Description;
use super::super::description::tests::{any_description, bpe, char_level};
use super::{from_json, to_json};

fn small_bpe() -> Description {
    bpe(&[(220, 83), (256, 71), (256, 64)], &["<|endoftext|>", "<pad>"])
}

fn small_chars() -> Description {
    char_level("\n 'aeé\u{301}🤖", &["<|endoftext|>", "<pad>"])
}

fn json_of(description: &Description) -> Value {
    serde_json::from_str(&to_json(description).unwrap()).unwrap()
}

/// What is read after a change, the fingerprint left out so that it is not what refuses it.
fn read_changed(
    description: &Description,
    change: impl Fn(&mut Value),
) -> crate::Result<Description> {
    let mut json = json_of(description);
    json["model"].as_object_mut().unwrap().remove("gptrs_fingerprint").unwrap();
    change(&mut json);
    from_json(json.to_string().as_bytes())
}

#[track_caller]
fn assert_refused(description: &Description, reason: &str, change: impl Fn(&mut Value)) {
    let message = read_changed(description, change).unwrap_err().to_string();
    assert!(message.contains(reason), "{message}");
}

#[track_caller]
fn assert_same(description: &Description, change: impl Fn(&mut Value)) {
    assert_eq!(read_changed(description, change).as_ref(), Ok(description));
}

#[test]
fn a_character_tokenizer_is_words_of_one_character() {
    let json = json_of(&char_level("\na", &["<s>"]));
    assert_eq!(json["pre_tokenizer"], json!({"type": "FixedLength", "length": 1}));
    assert_eq!(json["decoder"], json!({"type": "Fuse"}));
    assert_eq!(json["model"]["vocab"], json!({"\n": 0, "a": 1, "<s>": 2}));
    assert_eq!(json["added_tokens"][0]["id"], 2);
}

#[test]
fn tokens_and_merges_are_written_in_order_with_the_letters_of_their_bytes() {
    let text = to_json(&small_bpe()).unwrap();
    assert!(
        text.contains(r#""Ń":255,"Ġt":256,"Ġth":257,"Ġta":258,"<|endoftext|>":259,"<pad>":260"#)
    );
    assert!(text.ends_with(r#""merges":[["Ġ","t"],["Ġt","h"],["Ġt","a"]]}}"#));
}

#[test]
fn what_is_no_tokenizer_is_not_written() {
    assert!(to_json(&bpe(&[(0, 256)], &[])).is_err());
}

#[test]
fn what_means_nothing_may_differ() {
    assert_same(&small_bpe(), |json| {
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        for merge in merges {
            *merge =
                format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()).into();
        }
    });
    assert_same(&small_bpe(), |json| {
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false});
        json["post_processor"] = byte_level.clone();
        json["decoder"] = byte_level;
        json["pre_tokenizer"].as_object_mut().unwrap().remove("use_regex");
        let model = json["model"].as_object_mut().unwrap();
        model.retain(|key, _| key == "vocab" || key == "merges");
        model.insert("end_of_word_suffix".to_owned(), "".into());
        model.insert("cache_capacity".to_owned(), 10_000.into());
        let file = json.as_object_mut().unwrap();
        file.retain(|_, value| !value.is_null());
        file.insert("comment".to_owned(), "ours".into());
    });
    for description in [small_bpe(), small_chars()] {
        assert_same(&description, |json| {
            let text_alone = json!([{"Sequence": {"id": "A", "type_id": 0}}]);
            json["post_processor"] = json!({"type": "TemplateProcessing", "single": text_alone});
            // Special tokens that came late are in no vocabulary, and the order of keys is free.
            json["added_tokens"].as_array_mut().unwrap().reverse();
            json["model"]["vocab"].as_object_mut().unwrap().remove("<pad>");
        });
    }
}

#[test]
fn other_models_and_settings_are_refused_by_name() {
    for description in [small_bpe(), small_chars()] {
        for (key, found, reason) in [
            ("version", json!("2.0"), "version is \"2.0\"; expected \"1.0\""),
            ("normalizer", json!({"type": "NFC"}), "normalizer is {\"type\":\"NFC\"}"),
            ("truncation", json!({"max_length": 8}), "truncation is"),
            ("padding", json!({"strategy": "BatchLongest"}), "padding is"),
            (
                "pre_tokenizer",
                json!({"type": "Whitespace"}),
                "pre_tokenizer is {\"type\":\"Whitespace\"}",
            ),
            ("pre_tokenizer", json!(null), "pre_tokenizer is null"),
            ("decoder", json!(null), "decoder is null"),
            ("post_processor", json!({"type": "BertProcessing"}), "post_processor is"),
            ("model", json!({"type": "Unigram", "vocab": [["a", 0.5]]}), "type is Unigram"),
            ("model", json!({"type": "WordPiece", "vocab": {"a": 0}}), "type is WordPiece"),
            ("model", json!({"vocab": {"a": 0}}), "type is not named"),
            ("model", json!(null), "expected a model"),
        ] {
            assert_refused(&description, reason, |json| json[key] = found.clone());
        }
        let template = json!([{"SpecialToken": {"id": "<pad>"}}, {"Sequence": {"id": "A"}}]);
        assert_refused(&description, "one that adds no tokens", |json| {
            json["post_processor"] = json!({"type": "TemplateProcessing", "single": template});
        });
        for (setting, value) in [
            ("lstrip", true),
            ("rstrip", true),
            ("single_word", true),
            ("normalized", true),
            ("special", false),
        ] {
            let reason = format!("{setting} of the added token \"<pad>\" is {value}");
            assert_refused(&description, &reason, |json| {
                json["added_tokens"][1][setting] = value.into();
            });
        }
    }
    for (setting, found) in [
        ("dropout", json!(0.1)),
        ("byte_fallback", json!(true)),
        ("ignore_merges", json!(true)),
        ("continuing_subword_prefix", json!("##")),
        ("end_of_word_suffix", json!("</w>")),
    ] {
        let reason = format!("model's {setting} is {found}");
        assert_refused(&small_bpe(), &reason, |json| json["model"][setting] = found.clone());
    }
    for (setting, found) in [("add_prefix_space", json!(true)), ("use_regex", json!(false))] {
        let reason = "expected ByteLevel with add_prefix_space false and use_regex true";
        assert_refused(&small_bpe(), reason, |json| json["pre_tokenizer"][setting] = found.clone());
    }
    assert_refused(&small_chars(), "expected FixedLength with length 1", |json| {
        json["pre_tokenizer"]["length"] = 2.into();
    });
    assert_refused(&small_chars(), "unk_token is \"a\", which has the id 3", |json| {
        json["model"]["unk_token"] = "a".into();
    });
}

#[test]
fn ids_of_another_layout_are_refused_with_the_token() {
    let vocab = |json: &mut Value, token: &str, id: u64| json["model"]["vocab"][token] = id.into();
    for description in [small_bpe(), small_chars()] {
        assert_refused(&description, "special token \"<pad>\" is 7", |json| {
            json["added_tokens"][1]["id"] = 7.into();
        });
        assert_refused(&description, "special token \"<pad>\" is 18446744073709551615", |json| {
            json["added_tokens"][1]["id"] = u64::MAX.into();
        });
        assert_refused(&description, "the id of \"a\" is 4294967296", |json| {
            vocab(json, "a", 1 << 32);
        });
        assert_refused(&description, "invalid value: integer `-1`", |json| {
            json["model"]["vocab"]["a"] = (-1).into();
        });
        assert_refused(&description, "are \"<pad>\" and \"a\"; expected one", |json| {
            let id = json["model"]["vocab"]["<pad>"].as_u64().unwrap();
            vocab(json, "a", id);
        });
        assert_refused(&description, "\"<pad>\" are", |json| vocab(json, "<pad>", 3));
        assert_refused(&description, "model's vocab is missing", |json| {
            json["model"].as_object_mut().unwrap().remove("vocab");
        });
    }
    assert_refused(&small_bpe(), "the token of id 0 is \"\\\"\"; expected '!'", |json| {
        vocab(json, "\"", 0);
        vocab(json, "!", 1);
    });
    assert_refused(&small_bpe(), "no token has the id 257", |json| {
        json["model"]["vocab"].as_object_mut().unwrap().remove("Ġth");
    });
    assert_refused(&small_bpe(), "the id of \"<pad>\" is 260; expected one below 260", |json| {
        json["added_tokens"].as_array_mut().unwrap().pop();
    });
    assert_refused(&small_chars(), "the token of id 8 is \"<pad>\"; expected a single", |json| {
        json["added_tokens"] = json!([{"id": 9, "content": "<|endoftext|>", "special": true}]);
        vocab(json, "<pad>", 8);
        vocab(json, "<|endoftext|>", 9);
    });
}

#[test]
fn merges_that_do_not_make_the_next_id_are_refused() {
    let set = |json: &mut Value, merge: usize, pair: Value| json["model"]["merges"][merge] = pair;
    for (merge, pair, reason) in [
        (
            0,
            json!(["Ġ", "x"]),
            "the token of id 256 is \"Ġt\"; expected \"Ġx\", what merge 0 makes",
        ),
        (
            0,
            json!(["Ġth", "x"]),
            "id of \"Ġth\", which merge 0 joins, is 257; expected one below 256",
        ),
        (1, json!(["Ġt", "zz"]), "id of \"zz\", which merge 1 joins, is missing"),
        (1, json!("Ġt"), "expected a merge, which is a pair of tokens"),
        (1, json!(["Ġ", "t", "h"]), "a pair of tokens"),
        (1, json!(["Ġ"]), "a pair of tokens"),
        (1, json!("Ġ t h"), "id of \"t h\""),
    ] {
        assert_refused(&small_bpe(), reason, |json| set(json, merge, pair.clone()));
    }
    assert_refused(&small_bpe(), "the token of id 257", |json| {
        json["model"]["merges"].as_array_mut().unwrap().swap(1, 2);
    });
}

#[test]
fn special_tokens_that_are_none_are_refused() {
    for (content, reason) in
        [("", " \"\""), ("a b", "whitespace"), ("<|endoftext|>", "expected one")]
    {
        for description in [small_bpe(), small_chars()] {
            assert_refused(&description, reason, |json| {
                json["model"]["vocab"].as_object_mut().unwrap().remove("<pad>");
                json["added_tokens"][1]["content"] = content.into();
            });
        }
    }
}

#[test]
fn more_ids_than_16_bits_tell_apart_are_refused_and_as_many_are_read() {
    let chars: String = ('\0'..).take(40_000).collect();
    let special: Vec<String> = (0..25_536).map(|i| format!("<{i}>")).collect();
    let special: Vec<&str> = special.iter().map(String::as_str).collect();
    let full = char_level(&chars, &special);
    assert_same(&full, |_| ());
    assert_refused(&full, "vocabulary's size is 65537; expected at most 65536", |json| {
        json["model"]["vocab"]["one more"] = 65_536.into();
    });
    assert_refused(&full, "there are 65537 ids", |json| {
        let more = json!({"id": 65_536, "content": "<more>", "special": true});
        json["added_tokens"].as_array_mut().unwrap().push(more);
    });
}

#[test]
fn an_alteration_that_fits_together_is_known_by_the_fingerprint() {
    let altered = |json: &mut Value| {
        let text = json.to_string().replace("\"Ġta\"", "\"Ġte\"").replace("\"a\"]", "\"e\"]");
        *json = serde_json::from_str(&text).unwrap();
    };
    let without = read_changed(&small_bpe(), altered).unwrap();
    assert_eq!(without, bpe(&[(220, 83), (256, 71), (256, 68)], &["<|endoftext|>", "<pad>"]));
    let mut json = json_of(&small_bpe());
    altered(&mut json);
    let message = from_json(json.to_string().as_bytes()).unwrap_err().to_string();
    assert!(message.contains("the file has been altered"), "{message}");
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    for description in [small_bpe(), small_chars()] {
        let json = to_json(&description).unwrap();
        for len in 0..json.len() {
            let message = from_json(&json.as_bytes()[..len]).unwrap_err().to_string();
            assert!(
                message.contains("expected a tokenizer in JSON: EOF")
                    || !json.is_char_boundary(len)
            );
        }
    }
}

#[test]
fn what_is_no_json_of_a_tokenizer_is_refused_in_a_line_or_two() {
    let deep = "[".repeat(1_000_000);
    let long = format!("{{\"added_tokens\":\"{}\"}}", "x".repeat(1_000_000));
    let huge = format!("{{\"version\":{}}}", "9".repeat(1_000_000));
    let late = format!("{{\"normalizer\":{deep}");
    let objects = "{\"model\":".repeat(1_000_000);
    for json in
        ["", "[]", "null", "\"text\"", "1e999", "\u{feff}{}", &deep, &long, &huge, &late, &objects]
    {
        let message = from_json(json.as_bytes()).unwrap_err().to_string();
        assert!(message.len() < 1000, "{}", &message[..1000]);
    }
    assert!(from_json(b"{\"version\":\"\xff\"}").is_err());
}

/// One damaged place: bytes replaced, left out or put in.
fn damaged(json: &str, at: prop::sample::Index, len: usize, bytes: &[u8]) -> Vec<u8> {
    let start = at.index(json.len());
    let end = (start + len).min(json.len());
    [&json.as_bytes()[..start], bytes, &json.as_bytes()[end..]].concat()
}

proptest! {
    #[test]
    fn what_is_written_is_read(description in any_description()) {
        let json = to_json(&description).unwrap();
        prop_assert_eq!(from_json(json.as_bytes()), Ok(description.clone()));
        let pretty = serde_json::to_vec_pretty(&json_of(&description)).unwrap();
        prop_assert_eq!(from_json(&pretty), Ok(description));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_file_damaged_in_one_place_is_refused_or_read_as_before(
        description in any_description(),
        at in any::<prop::sample::Index>(),
        len in 0_usize..40,
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..3),
            "[0-9a-z\"\\[\\]{}:, ]{0,3}".prop_map(String::into_bytes),
        ],
    ) {
        let json = to_json(&description).unwrap();
        if let Ok(read) = from_json(&damaged(&json, at, len, &bytes)) {
            prop_assert_eq!(read, description);
        }
    }
}
