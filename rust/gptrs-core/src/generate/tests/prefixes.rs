//! What has been read is not read again.

use super::*;

/// Runs to the end; returns the outputs and how many tokens were read for them.
fn tokens_read(run: &mut Generation<HashModel>) -> (Vec<Output>, usize) {
    let before = run.model.tokens_read;
    let outputs = run.run().unwrap();
    (outputs, run.model.tokens_read - before)
}

fn prompt(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| i * i % 11).collect()
}

#[test]
fn samples_of_one_prompt_read_it_once_and_draw_from_the_same_logits() {
    for (len, prefill_tokens) in [(1, 7), (30, 7), (30, 2048)] {
        let options = Options { prefill_tokens, ..Options::default() };
        let mut run = generation(64, 4, options);
        for _ in 0..4 {
            run.inbox().submit(request(&prompt(len), &greedy(5, 64))).unwrap();
        }
        let (_, read) = tokens_read(&mut run);
        assert_eq!(read, len + 4 * 4);
        assert_eq!(run.model.calls, len.div_ceil(prefill_tokens) + 4);
    }
}

#[test]
fn prompts_that_begin_alike_read_the_beginning_once() {
    let mut run = generation(64, 4, Options::default());
    for last in 0..4 {
        let prompt = [&prompt(40)[..], &[last, last, last]].concat();
        run.inbox().submit(request(&prompt, &greedy(5, 64))).unwrap();
    }
    let (_, read) = tokens_read(&mut run);
    assert_eq!(read, 40 + 4 * 3 + 4 * 4);
    // The three that waited come one step behind the first.
    assert_eq!(run.model.calls, 6);
}

#[test]
fn nobody_waits_for_a_beginning_too_short_to_pay() {
    let mut run = generation(64, 4, Options::default());
    for last in 0..4 {
        run.inbox().submit(request(&[&prompt(15)[..], &[last]].concat(), &greedy(5, 64))).unwrap();
    }
    let (_, read) = tokens_read(&mut run);
    assert_eq!((run.model.calls, read), (5, 4 * 16 + 4 * 4));
}

#[test]
fn who_joins_later_copies_what_a_running_sequence_has_read() {
    let mut run = generation(64, 2, Options::default());
    run.inbox().submit(request(&prompt(40), &greedy(5, 64))).unwrap();
    run.step(&mut Vec::new()).unwrap();
    run.inbox().submit(request(&[&prompt(33)[..], &[9]].concat(), &greedy(1, 64))).unwrap();
    let (_, read) = tokens_read(&mut run);
    assert_eq!(read, 4 + 1);
}

#[test]
fn a_conversation_reads_each_turn_alone() {
    let mut run = generation(200, 1, Options::default());
    let mut history = prompt(20);
    for turn in 0..4 {
        run.inbox().submit(request(&history, &greedy(10, 200))).unwrap();
        let (outputs, read) = tokens_read(&mut run);
        // All but the first turn read the last token of the turn before, and 5 new ones.
        assert_eq!(read, if turn == 0 { 20 + 9 } else { 1 + 5 + 9 });
        assert_eq!(outputs[0], alone(&request(&history, &greedy(10, 200)), 200, 11));
        history.extend(&outputs[0].tokens);
        history.extend([turn; 5]);
    }
}

#[test]
fn a_batch_that_comes_again_in_another_order_reads_nothing_but_the_last_tokens() {
    let mut run = generation(64, 3, Options::default());
    let prompts: Vec<Vec<u32>> = (0..3).map(|i| [&[i][..], &prompt(20)].concat()).collect();
    for order in [[0, 1, 2], [2, 0, 1], [1, 0, 2]] {
        for number in order {
            run.inbox().submit(request(&prompts[number], &greedy(1, 64))).unwrap();
        }
        let (outputs, read) = tokens_read(&mut run);
        assert_eq!(read, if order == [0, 1, 2] { 63 } else { 3 });
        for (number, output) in order.into_iter().zip(outputs) {
            assert_eq!(output, alone(&request(&prompts[number], &greedy(1, 64)), 64, 11));
        }
    }
}

#[test]
fn rebase_reads_half_a_window_once_in_half_a_window() {
    let settings = Settings { overflow: Overflow::Rebase, ..Settings::greedy(1000, 100) };
    let mut run = generation(100, 1, Options::default());
    run.inbox().submit(request(&prompt(10), &Arc::new(settings))).unwrap();
    let (_, read) = tokens_read(&mut run);
    assert!(read < 2 * 1000, "{read}");
}
