//! What goes wrong: each time the error says what was found where, and nothing valid is lost.

use super::*;

/// A folder with files of texts, to be built in blocks of 64 bytes.
struct Bench {
    scratch: Scratch,
    inputs: Vec<Input>,
    options: Options,
}

impl Bench {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let scratch = Scratch::new();
        let write = |(name, content): &(&str, &[u8])| {
            let path = scratch.path().join(name);
            fs::write(&path, content).unwrap();
            let is_jsonl = name.contains("jsonl");
            let kind = if is_jsonl { Kind::Jsonl } else { Kind::Text };
            Input { kind, path: path.display().to_string() }
        };
        let inputs = files.iter().map(write).collect();
        Self { scratch, inputs, options: Options::default() }
    }

    fn with(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.options);
        self
    }

    fn out(&self) -> std::path::PathBuf {
        self.scratch.path().join("out")
    }

    fn open(&self) -> Result<Builder> {
        let sizes = Sizes { block_bytes: 64, save_every: Duration::ZERO };
        let tokenizer = Arc::new(Tokenizer::gpt2());
        let (options, check) = (self.options.clone(), &mut || Ok(()));
        Builder::open_with(&self.out(), tokenizer, "gpt2", &self.inputs, options, sizes, check)
    }

    /// Builds all that is left.
    fn build(&self) -> Result<Vec<u16>> {
        let mut builder = self.open()?;
        builder.add_files(&mut || Ok(()))?;
        builder.finish()?;
        Ok(read(&self.out(), self.options.shard_tokens).0.tokens)
    }

    /// What `build` says on any number of threads.
    fn refusal(mut self) -> String {
        let mut messages = (1..4).map(|threads| {
            self.options.threads = threads;
            self.build().err().unwrap().to_string()
        });
        let message = messages.next().unwrap();
        assert!(messages.all(|other| other == message));
        let folder = format!("{}/", self.scratch.path().display());
        message.replace(&folder, "")
    }
}

fn ids(text: &str) -> Vec<u16> {
    let mut ids = Tokenizer::gpt2().encode_ordinary(text).unwrap();
    ids.push(50_256);
    ids
}

#[test]
fn an_input_that_changed_since_the_build_began_is_named() {
    let bench = Bench::new(&[("a.txt", b"one two"), ("b.txt", b"three")]);
    drop(bench.open().unwrap());
    fs::write(&bench.inputs[1].path, "three and four").unwrap();
    let error = bench.open().err().unwrap().to_string();
    assert!(error.contains("b.txt\" has changed: 5 bytes then, 14 bytes now; delete"), "{error}");
    assert!(error.ends_with(".building to start anew"), "{error}");
}

#[test]
fn an_input_that_changes_while_it_is_built_is_named() {
    let bench = Bench::new(&[("a.txt", b"one two"), ("b.txt", b"three")]);
    let mut builder = bench.open().unwrap();
    fs::write(&bench.inputs[1].path, "three and four").unwrap();
    let error = builder.add_files(&mut || Ok(())).unwrap_err().to_string();
    assert!(
        error.ends_with("b.txt: has changed since this build began: 5 bytes then, 14 bytes now")
    );
}

#[test]
fn a_build_is_continued_with_its_own_settings_alone() {
    let bench = Bench::new(&[("a.txt", b"one two")]);
    drop(bench.open().unwrap());
    let bench = bench.with(|options| options.min_chars = 3);
    let error = bench.open().err().unwrap().to_string();
    assert!(error.contains("min_chars was 0, now it is 3"), "{error}");
    let bench = bench.with(|options| (options.min_chars, options.threads) = (0, 3));
    assert_eq!(bench.build(), Ok(ids("one two")));
}

#[test]
fn one_process_builds_in_a_folder_at_a_time_and_a_store_is_not_built_twice() {
    let bench = Bench::new(&[("a.txt", b"one two")]);
    let first = bench.open().unwrap();
    let error = bench.open().err().unwrap().to_string();
    assert!(error.ends_with("out: another build is under way here"), "{error}");
    drop(first);
    assert_eq!(bench.build(), Ok(ids("one two")));
    let before = files(&bench.out());
    let error = bench.open().err().unwrap().to_string();
    assert!(error.contains("out: holds a token store already: name another folder"), "{error}");
    assert_eq!(files(&bench.out()), before);
}

#[test]
fn a_missing_input_or_a_folder_is_refused_before_anything_is_made() {
    for name in ["missing.txt", ""] {
        let mut bench = Bench::new(&[("a.txt", b"one two")]);
        let path = bench.scratch.path().join(name).display().to_string();
        bench.inputs.push(Input { kind: Kind::Text, path: path.clone() });
        let reason = if name.is_empty() { "is a folder, not a file" } else { "no such file" };
        let expected = Error::File { path, reason: reason.to_owned() };
        assert_eq!(bench.open().err(), Some(expected));
        assert!(!bench.out().exists());
    }
}

#[test]
fn a_compressed_file_that_is_cut_off_or_damaged_is_named() {
    let numbers: Vec<String> = (0..4_000).map(|number| (number * number).to_string()).collect();
    let text = numbers.join(" ");
    for name in ["a.txt.gz", "a.txt.zst"] {
        let packed = match name {
            "a.txt.gz" => gzip(text.as_bytes()),
            _ => zstd_with_checksum(text.as_bytes()),
        };
        let mut flipped = packed.clone();
        flipped[packed.len() / 2] ^= 0x55;
        for content in [&packed[..packed.len() - 1], &packed[..packed.len() / 2], &flipped] {
            let refusal = Bench::new(&[("0.txt", b"whole"), (name, content)]).refusal();
            let expected = format!("{name}: cannot be decompressed, it is cut off or damaged: ");
            assert!(refusal.starts_with(&expected), "{refusal}");
        }
        let whole = Bench::new(&[(name, &packed)]);
        assert_eq!(whole.build(), Ok(ids(&text)));
    }
}

fn zstd_with_checksum(content: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn bytes_that_are_not_utf_8_are_refused_with_file_and_offset_or_replaced() {
    let text = [b"words ".repeat(40), b"x\xffy".to_vec()].concat();
    let refusal = Bench::new(&[("a.txt", &text)]).refusal();
    assert_eq!(refusal, "a.txt: not UTF-8: byte 0xff at offset 241");
    let bench = Bench::new(&[("a.txt", &text), ("b.jsonl", b"{\"text\": \"\xe9 \\ud83d\"}")]);
    let bench = bench.with(|options| options.replace_invalid = true);
    let expected = [ids(&format!("{}x\u{fffd}y", "words ".repeat(40))), ids("\u{fffd} \u{fffd}")];
    assert_eq!(bench.build(), Ok(expected.concat()));
}

#[test]
fn a_row_that_is_no_document_is_refused_with_file_and_line_or_skipped_and_counted() {
    let bad: [(&[u8], &str); 8] = [
        (b"{\"text\": null}", "invalid type: null, expected a string in the field \"text\""),
        (b"{\"text\": 3}", "invalid type: integer `3`, expected a string in the field \"text\""),
        (b"{\"txt\": \"a\"}", "has no field \"text\""),
        (b"[\"text\"]", "invalid type: sequence, expected an object"),
        (b"{\"text\": \"a\"} x", "trailing characters at column 15"),
        (b"{\"text\": \"a", "EOF while parsing a string at column 11"),
        (b"{\"text\": \"\\ud800\"}", "unexpected end of hex escape at column"),
        (b"{\"text\": \"\xff\"}", "is not UTF-8 behind its first 10 bytes"),
    ];
    let good = b"{\"text\": \"a good row\"}\n\n".repeat(5);
    for (row, reason) in bad {
        let content = [&*good, row, b"\n", &*good].concat();
        let refusal = Bench::new(&[("a.jsonl", &content)]).refusal();
        assert!(refusal.starts_with(&format!("a.jsonl:11: {reason}")), "{refusal}");
        let bench = Bench::new(&[("a.jsonl", &content)]);
        let bench = bench.with(|options| options.skip_invalid = true);
        assert_eq!(bench.build(), Ok(ids("a good row").repeat(10)));
        assert_eq!(Manifest::read(&bench.out()).unwrap().dropped.invalid, 1);
    }
}

#[test]
fn a_line_and_a_piece_that_are_too_long_are_refused_where_they_start() {
    let long = Bench::new(&[("a.jsonl", b"{\"text\": \"a\"}\n"), ("b.txt", b"two  words and ")]);
    for input in &long.inputs {
        let file = File::options().write(true).open(&input.path).unwrap();
        file.set_len(66 << 20).unwrap();
    }
    let Bench { scratch, mut inputs, options } = long;
    let text = inputs.pop().unwrap();
    let lines = Bench { scratch, inputs, options: options.clone() };
    let error = lines.build().unwrap_err().to_string();
    assert!(error.ends_with("a.jsonl:2: the line has more than 67108864 bytes"), "{error}");
    fs::remove_dir_all(lines.out()).unwrap();
    let error = Bench { inputs: vec![text], ..lines }.build().unwrap_err().to_string();
    assert!(error.contains("b.txt: the piece of text that starts at byte 14 has more"), "{error}");
}

#[test]
fn rows_that_are_not_those_of_the_first_run_are_noticed() {
    let scratch = Scratch::new();
    let inputs = vec![Input { kind: Kind::Rows, path: "texts".to_owned() }];
    let bench = Bench { scratch, inputs, options: Options::default() };
    let rows: Vec<String> = (0..9).map(|number| format!("row {number} has some words")).collect();
    let add = |builder: &mut Builder, rows: &[String]| {
        builder.add_rows(rows.iter().map(|row| Some(&**row)), 0, &mut || Ok(()))
    };
    let mut builder = bench.open().unwrap();
    builder.options.threads = 0; // Rows are encoded at once.
    add(&mut builder, &rows[..5]).unwrap();
    assert_eq!(builder.rows_done(), 5);
    drop(builder);
    let mut others = rows.clone();
    others[2].push('!');
    let mut builder = bench.open().unwrap();
    let error = add(&mut builder, &others).unwrap_err().to_string();
    assert!(error.contains("its first 5 rows are not what they were"), "{error}");
    let mut builder = bench.open_again(builder);
    add(&mut builder, &rows[..3]).unwrap();
    let error = builder.end_rows(&mut || Ok(())).unwrap_err().to_string();
    assert!(error.contains("it has 3 rows, 5 had been read"), "{error}");
    let mut builder = bench.open_again(builder);
    add(&mut builder, &rows).unwrap();
    let gap = builder.add_rows([Some("x")], 12, &mut || Ok(())).unwrap_err().to_string();
    assert_eq!(gap, "rows come in order: expected those from row 9 on, found row 12");
    builder.end_rows(&mut || Ok(())).unwrap();
    builder.finish().unwrap();
    let expected: Vec<u16> = rows.iter().flat_map(|row| ids(row)).collect();
    assert_eq!(read(&bench.out(), 1 << 28).0.tokens, expected);
}

impl Bench {
    fn open_again(&self, builder: Builder) -> Builder {
        drop(builder);
        self.open().unwrap()
    }
}

#[cfg(unix)]
#[test]
fn a_pipe_is_built_like_a_file_and_what_comes_again_is_compared() {
    let numbers: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    let text = numbers.join(" words, ");
    let mut bench = Bench::new(&[]);
    let path = bench.scratch.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    bench.inputs.push(Input { kind: Kind::Text, path: path.display().to_string() });
    let feed = |text: &str| {
        let (path, text) = (path.clone(), text.to_owned());
        // The reader may leave before the end.
        std::thread::spawn(move || drop(fs::write(path, text)))
    };
    let writer = feed(&text);
    let mut builder = bench.open().unwrap();
    let mut calls = 0;
    let mut check = || {
        calls += 1;
        if calls < 40 { Ok(()) } else { Err(Error::NothingToDraw) }
    };
    assert_eq!(builder.add_files(&mut check), Err(Error::NothingToDraw));
    assert!(builder.counts().lock().unwrap().tokens > 0);
    writer.join().unwrap();
    drop(builder);
    let writer = feed(&text.replacen('1', "2", 1));
    let error = bench.build().unwrap_err().to_string();
    assert!(error.ends_with("pipe: does not start with the bytes that this build began with"));
    writer.join().unwrap();
    let writer = feed(&text);
    assert_eq!(bench.build(), Ok(ids(&text)));
    writer.join().unwrap();
}

#[test]
fn a_byte_order_mark_is_dropped_at_the_start_alone() {
    let files: [(&str, &[u8]); 3] = [
        ("a.txt", "\u{feff}a \u{feff}b".as_bytes()),
        ("b.jsonl", "\u{feff}{\"text\": \"c\"}".as_bytes()),
        ("c.txt", "\u{feff}".as_bytes()),
    ];
    let expected = [ids("a \u{feff}b"), ids("c")].concat();
    assert_eq!(Bench::new(&files).build(), Ok(expected));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_parts_one_after_the_other_are_the_whole(
        sizes in prop::collection::vec(0_usize..200, 0..12),
        parts in 1_u64..6,
    ) {
        let contents: Vec<(String, String)> = sizes
            .iter()
            .enumerate()
            .map(|(number, size)| (format!("{number}.txt"), "some words ".repeat(*size)))
            .collect();
        let files: Vec<(&str, &[u8])> =
            contents.iter().map(|(name, text)| (&**name, text.as_bytes())).collect();
        let mut bench = Bench::new(&files);
        let whole = bench.build().unwrap();
        let mut joined = Vec::new();
        for part in 0..parts {
            bench.options.task = Some((part, parts));
            fs::remove_dir_all(bench.out()).unwrap();
            joined.extend(bench.build().unwrap());
        }
        prop_assert_eq!(joined, whole);
    }
}
