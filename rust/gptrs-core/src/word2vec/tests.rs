//! Training as a whole: what is counted, what is learned, how it ends.

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::source::{Input, Kind};
use crate::store::scratch::Scratch;

/// A corpus of one file; it is there as long as the folder is.
fn corpus(folder: &Scratch, content: &str, kind: Kind) -> Corpus {
    let path = folder.path().join("text");
    fs::create_dir_all(folder.path()).unwrap();
    fs::write(&path, content).unwrap();
    let units = Units::Words(WordSplitter::new(None, false).unwrap());
    let input = Input { kind, path: path.display().to_string() };
    Corpus::files(vec![input], "text".to_owned(), false, units).unwrap()
}

fn small() -> Settings {
    let (sample, min_count) = (0.0, 1);
    Settings { vector_size: 8, epochs: 2, sample, min_count, ..Settings::default() }
}

fn learn(corpus: &Corpus, settings: &Settings) -> Result<Vectors> {
    train(corpus, settings, &Progress::default(), &mut || Ok(()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn words_are_counted_alike_on_any_number_of_threads_and_in_any_layout(
        lines in prop::collection::vec("[ab中]{0,2}( [ab]{1,3}){0,9}", 1..900),
        threads in 1_usize..5,
        as_json in any::<bool>(),
    ) {
        let folder = Scratch::new();
        let (content, kind) = if as_json {
            let row = |line: &String| serde_json::json!({ "text": line }).to_string();
            (lines.iter().map(row).collect::<Vec<_>>().join("\n"), Kind::Jsonl)
        } else {
            (lines.join("\n"), Kind::Text)
        };
        let mut expected: HashMap<&str, u64> = HashMap::new();
        for word in lines.iter().flat_map(|line| line.split_whitespace()) {
            *expected.entry(word).or_default() += 1;
        }
        let settings = Settings { threads, vector_size: 1, epochs: 1, ..small() };
        let learned = learn(&corpus(&folder, &content, kind), &settings);
        if expected.is_empty() {
            let empty = Error::EmptyVocabulary { min_count: 1, distinct: 0, most: 0 };
            prop_assert_eq!(learned.err(), Some(empty));
            return Ok(());
        }
        let vocabulary = learned.unwrap().vocabulary;
        let mut sorted: Vec<_> = expected.into_iter().collect();
        sorted.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        let found = vocabulary.words().unwrap().zip(vocabulary.counts().iter().copied());
        prop_assert!(found.eq(sorted));
    }
}

#[test]
fn one_thread_learns_the_same_twice_whatever_was_drawn_before() {
    let folder = Scratch::new();
    let corpus = corpus(&folder, &"a b c d\nd e f a\n".repeat(500), Kind::Text);
    for algorithm in
        [Algorithm::SkipGram, Algorithm::Cbow { mean: true }, Algorithm::Cbow { mean: false }]
    {
        let settings = Settings { algorithm, ..small() };
        let [first, second] = [(); 2].map(|()| learn(&corpus, &settings).unwrap().numbers);
        assert_eq!(first, second);
        assert!(first.iter().all(|number| number.is_finite()));
        let other = learn(&corpus, &Settings { seed: 2, ..settings }).unwrap().numbers;
        assert_ne!(first, other);
    }
}

#[test]
fn every_epoch_learns_from_every_word() {
    let folder = Scratch::new();
    let corpus = corpus(&folder, &"a b c\n".repeat(20_000), Kind::Text);
    for threads in 1..4 {
        let (progress, settings) =
            (Progress::default(), Settings { threads, epochs: 3, ..small() });
        train(&corpus, &settings, &progress, &mut || Ok(())).unwrap();
        assert_eq!(progress.learned.load(Ordering::Relaxed), 180_000);
        assert_eq!(progress.to_learn.load(Ordering::Relaxed), 180_000);
        assert_eq!(progress.counted.load(Ordering::Relaxed), corpus.size());
    }
}

#[test]
fn an_error_of_the_check_ends_all_threads_and_arrives_unchanged() {
    let folder = Scratch::new();
    let corpus = corpus(&folder, &"a b c\n".repeat(20_000), Kind::Text);
    for threads in 1..4 {
        let settings = Settings { threads, epochs: u64::MAX >> 32, ..small() };
        for calls in [1, 50, 500] {
            let mut left = calls;
            let mut check = || {
                left -= 1;
                if left == 0 { Err(Error::NothingToDraw) } else { Ok(()) }
            };
            let learned = train(&corpus, &settings, &Progress::default(), &mut check);
            assert_eq!(learned.err(), Some(Error::NothingToDraw));
        }
    }
}

#[test]
fn a_line_that_is_no_text_ends_all_threads_and_is_named() {
    let folder = Scratch::new();
    let mut lines = vec![r#"{"text": "a b"}"#; 9_000];
    lines[7_000] = r#"{"text": 1}"#;
    let corpus = corpus(&folder, &lines.join("\n"), Kind::Jsonl);
    for threads in 1..4 {
        let error = learn(&corpus, &Settings { threads, ..small() }).unwrap_err().to_string();
        assert!(error.contains("text:7001: "), "{error}");
    }
}

#[test]
fn a_line_that_is_longer_than_a_part_is_learned_from_whole() {
    let folder = Scratch::new();
    let corpus = corpus(&folder, &"a b c ".repeat(20_000), Kind::Text);
    let learned = learn(&corpus, &small()).unwrap();
    assert_eq!(learned.vocabulary.counts(), [20_000; 3]);
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let refused = |settings: Settings| settings.check().unwrap_err().to_string();
    let fine = Settings::default();
    assert_eq!(fine.check(), Ok(()));
    let message = refused(Settings { vector_size: 0, ..fine.clone() });
    assert_eq!(message, "vector_size is 1 to 65536, found 0");
    let message = refused(Settings { min_alpha: 1.0, ..fine.clone() });
    assert_eq!(message, "alpha is above 0, and min_alpha 0 to alpha; found 0.025 and 1");
    assert_eq!(refused(Settings { sample: 2.0, ..fine }), "sample is 0 to 1, found 2");
}
