//! Texts on many threads, cut where `cuts` says, so that the parts' ids are the whole texts'.

use super::cuts::safe_cut;
use super::memory::{collect_ids, room_for_ids};
use super::worker::Worker;
use super::{Check, Tokenizer};
use crate::Result;
use crate::threads::in_order;

/// How much text a thread takes at a time: enough that threads rarely meet.
const JOB_BYTES: usize = 1 << 16;

/// A job is at most this part of what is left, so that threads end together.
const PART_OF_REST: usize = 8;

/// But not smaller than this part of the first.
const PART_OF_FIRST: usize = 4;

/// The ids of `texts`, and where each text's end.
pub fn encode(
    tokenizer: &Tokenizer,
    texts: &[&str],
    allowed_special: &[&str],
    threads: usize,
    check: Check<'_>,
) -> Result<(Vec<u16>, Vec<usize>)> {
    let jobs = jobs(texts, if threads > 1 { JOB_BYTES } else { usize::MAX });
    let (ids, ends_of_jobs) = encode_jobs(tokenizer, &jobs, allowed_special, threads, check)?;
    let mut ends = vec![0; texts.len()];
    let mut before = 0;
    for (part, num_ids) in jobs.iter().flatten().zip(ends_of_jobs.into_iter().flatten()) {
        before += num_ids;
        ends[part.number] = before;
    }
    Ok((ids, ends))
}

/// The ids of all jobs, and for each job how many its parts have.
fn encode_jobs(
    tokenizer: &Tokenizer,
    jobs: &[Vec<Part<'_>>],
    allowed_special: &[&str],
    threads: usize,
    check: Check<'_>,
) -> Result<(Vec<u16>, Vec<Vec<usize>>)> {
    if let [job] = jobs {
        let mut ids = room_for_ids(job.iter().map(|part| part.text.len()).sum());
        let mut worker = Worker::new(tokenizer);
        let counts = encode_job(&mut worker, job, allowed_special, &mut ids, check)?;
        return Ok((ids, vec![counts]));
    }
    // No text has more ids than bytes.
    let capacity: usize = jobs.iter().flatten().map(|part| part.text.len()).sum();
    let (ids, counts) = collect_ids(capacity, |shared| {
        // The ids of one job stay in the thread's cache until they are copied.
        let new_worker = || {
            let mut worker = Worker::new(tokenizer);
            worker.expect(capacity);
            (worker, Vec::with_capacity(JOB_BYTES / 2))
        };
        let job = |(worker, ids): &mut (_, Vec<u16>), number: usize, check: Check<'_>| {
            ids.clear();
            let counts = encode_job(worker, &jobs[number], allowed_special, ids, check)?;
            *ids = shared.append(number, std::mem::take(ids));
            Ok(counts)
        };
        in_order(threads, jobs.len(), &new_worker, &job, check)
    });
    Ok((ids, counts?))
}

/// Appends the ids of a job's parts, and returns how many each has.
fn encode_job(
    worker: &mut Worker<'_>,
    job: &[Part<'_>],
    allowed_special: &[&str],
    ids: &mut Vec<u16>,
    check: Check<'_>,
) -> Result<Vec<usize>> {
    let mut counts = Vec::with_capacity(job.len());
    for part in job {
        let before = ids.len();
        worker
            .encode(part.text, allowed_special, &mut |new| ids.extend_from_slice(new), check)
            .map_err(|error| error.moved_by(part.start))?;
        counts.push(ids.len() - before);
    }
    Ok(counts)
}

/// Part of a text.
struct Part<'t> {
    /// The text's number.
    number: usize,
    /// Where in it the part starts.
    start: usize,
    text: &'t str,
}

/// All texts in order, as jobs of about `most_bytes`, the last of less; as one if that is enough.
fn jobs<'t>(texts: &[&'t str], most_bytes: usize) -> Vec<Vec<Part<'t>>> {
    let mut left: usize = texts.iter().map(|text| text.len()).sum();
    let least_bytes =
        if left <= most_bytes { most_bytes } else { most_bytes.div_ceil(PART_OF_FIRST) };
    let job_bytes = |left: usize| (left / PART_OF_REST).clamp(least_bytes, most_bytes);
    let (mut jobs, mut job, mut room) = (Vec::new(), Vec::new(), job_bytes(left));
    for (number, text) in texts.iter().enumerate() {
        let mut start = 0_usize;
        loop {
            let end = safe_cut(text, start.saturating_add(room));
            job.push(Part { number, start, text: &text[start..end] });
            room = room.saturating_sub(end - start);
            left -= end - start;
            start = end;
            if room == 0 {
                jobs.push(std::mem::take(&mut job));
                room = job_bytes(left);
            }
            if start == text.len() {
                break;
            }
        }
    }
    jobs.push(job);
    jobs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::description::{Description, Model};
    use super::super::{BYTES_BETWEEN_CHECKS, END_OF_TEXT, LONGEST_PIECE};
    use super::*;
    use crate::Error;

    const TEXT: &str = r"([a-eA-E'0-9 \t\n]|'(s|t|re|ve|ll)|\s|\pL|\pN|\PC|<\|endoftext\|>){0,60}";

    #[test]
    fn many_small_texts_are_stopped_as_early_as_one_large_text() {
        let tokenizer = Tokenizer::gpt2();
        let texts = vec!["a few words "; BYTES_BETWEEN_CHECKS / 4];
        for (threads, texts) in
            [(1, &*texts), (2, &texts), (1, &vec![""; 2 * BYTES_BETWEEN_CHECKS])]
        {
            let stopped = encode(&tokenizer, texts, &[], threads, &mut || Err(Error::Stopped));
            // One other thread may have done all before this one asked.
            assert!(stopped.is_err() || threads == 2);
            assert!(stopped.err().is_none_or(|error| error == Error::Stopped));
        }
    }

    #[test]
    fn a_text_is_stopped_in_the_middle_on_any_number_of_threads() {
        let (tokenizer, text) = (Tokenizer::gpt2(), "word ".repeat(JOB_BYTES));
        for threads in 1..=4 {
            let mut calls = 0;
            let stopped = tokenizer.encode_batch(&["", &text], &[], threads, &mut || {
                calls += 1;
                if calls == 2 { Err(Error::NothingToDraw) } else { Ok(()) }
            });
            // Other threads may have done all before this one asked twice.
            let expected = (threads == 1 || calls == 2).then_some((Error::NothingToDraw, 2));
            assert_eq!(stopped.err().map(|error| (error, calls)), expected);
        }
    }

    #[test]
    fn a_piece_that_is_too_long_is_refused_where_it_starts_on_any_number_of_threads() {
        let before = "words and more words ".repeat(JOB_BYTES / 10);
        let text = before.clone() + &"x".repeat(LONGEST_PIECE + 1) + " and words";
        let expected = Error::PieceTooLong { offset: before.len() - 1, longest: LONGEST_PIECE };
        let refused = Tokenizer::gpt2().encode_batch(&[&text], &[], 2, &mut || Ok(()));
        assert_eq!(refused.err(), Some(expected));
    }

    proptest! {
        #[test]
        fn many_texts_on_many_threads_get_the_ids_that_each_gets_alone(
            texts in prop::collection::vec(TEXT, 0..6),
            threads in 1usize..6,
            special in any::<bool>(),
        ) {
            let (tokenizer, allowed): (_, &[&str]) =
                (Tokenizer::gpt2(), if special { &[END_OF_TEXT] } else { &[] });
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let (mut ids, mut ends) = (Vec::new(), Vec::new());
            for text in &texts {
                ids.extend(tokenizer.encode(text, allowed, &[]).unwrap());
                ends.push(ids.len());
            }
            let found = encode(&tokenizer, &texts, allowed, threads, &mut || Ok(())).unwrap();
            prop_assert_eq!(found, (ids, ends));
        }

        #[test]
        fn jobs_of_any_size_have_all_texts_in_order_and_give_their_ids(
            texts in prop::collection::vec(TEXT, 0..6),
            job_bytes in 1usize..200,
            threads in 1usize..4,
        ) {
            let tokenizer = Tokenizer::gpt2();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let jobs = jobs(&texts, job_bytes);
            let mut whole = vec![String::new(); texts.len()];
            for part in jobs.iter().flatten() {
                prop_assert_eq!(part.start, whole[part.number].len());
                whole[part.number] += part.text;
            }
            prop_assert_eq!(&whole, &texts);
            let (ids, _) =
                encode_jobs(&tokenizer, &jobs, &[END_OF_TEXT], threads, &mut || Ok(())).unwrap();
            let alone = texts.iter().map(|text| tokenizer.encode(text, &[END_OF_TEXT], &[]).unwrap());
            prop_assert_eq!(ids, alone.collect::<Vec<_>>().concat());
        }

        #[test]
        fn a_text_may_be_cut_wherever_safe_cut_says(text in TEXT, from in 0usize..150) {
            let tokenizer = Tokenizer::gpt2();
            let cut = safe_cut(&text, from);
            prop_assert!(cut >= from.min(text.len()));
            for allowed in [&[][..], &[END_OF_TEXT]] {
                let ids = |text: &str| tokenizer.encode(text, allowed, &[]).unwrap();
                prop_assert_eq!([ids(&text[..cut]), ids(&text[cut..])].concat(), ids(&text));
            }
        }

        #[test]
        fn the_first_unknown_character_is_named_on_any_number_of_threads(
            text in "[a é]{0,60}",
            job_bytes in 1usize..20,
            threads in 1usize..5,
        ) {
            let model = Model::Char { chars: vec![' ', 'a'] };
            let tokenizer = Tokenizer::new(Description { model, special_tokens: vec![] }).unwrap();
            let jobs = jobs(&["a a", &text], job_bytes);
            let found = encode_jobs(&tokenizer, &jobs, &[], threads, &mut || Ok(()));
            let expected = text.find('é').map(|offset| Error::UnknownCharacter { char: 'é', offset });
            prop_assert_eq!(found.err(), expected);
        }
    }
}
