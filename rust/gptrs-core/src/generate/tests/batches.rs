//! A sequence gets the same tokens alone and in any batch.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::plain::requests;
use super::*;

/// Any way to run a batch: context length, slots, options.
fn any_run() -> impl Strategy<Value = (usize, usize, Options)> {
    (1_usize..30, 1_usize..6, 1_usize..40, 1_usize..20, 1_usize..4).prop_map(
        |(context_length, slots, prefill_tokens, least_shared, threads)| {
            let options = Options { prefill_tokens, least_shared, threads, queue: usize::MAX };
            (context_length, slots, options)
        },
    )
}

/// Submits, and checks that what is refused is a prompt that may not be cropped.
fn submit(run: &Generation<HashModel>, request: &Request, context_length: usize) -> Option<usize> {
    let Settings { window, overflow, .. } = *request.settings;
    let window = window.min(context_length);
    match run.inbox().submit(request.clone()) {
        Err(error) => {
            assert!(matches!(error, Error::PromptTooLong { .. }), "{error}");
            assert!(overflow == Overflow::Stop && request.prompt.len() > window);
            None
        }
        Ok(number) => Some(number),
    }
}

proptest! {
    #[test]
    fn a_batch_gives_what_each_prompt_gives_alone(
        requests in requests(10), (context_length, slots, options) in any_run(),
    ) {
        let mut run = generation(context_length, slots, options);
        let taken: Vec<_> =
            requests.iter().filter(|r| submit(&run, r, context_length).is_some()).collect();
        let outputs = run.run().unwrap();
        prop_assert!(run.model.most_at_once <= options.prefill_tokens + slots);
        prop_assert_eq!(outputs.len(), taken.len());
        for (request, output) in taken.into_iter().zip(outputs) {
            prop_assert_eq!(output, alone(request, context_length, 11));
        }
    }

    #[test]
    fn sequences_may_join_and_be_cancelled_at_any_step(
        requests in requests(16), (context_length, slots, options) in any_run(),
        joins in prop::collection::vec(0_usize..4, 16), cancels in prop::collection::vec(0_usize..60, 40),
    ) {
        let mut run = generation(context_length, slots, options);
        let mut waiting = requests.iter();
        let mut submitted = BTreeMap::new();
        let mut outputs: BTreeMap<usize, Output> = BTreeMap::new();
        let (mut joins, mut cancels) = (joins.iter(), cancels.iter());
        let mut events = Vec::new();
        loop {
            let is_last = joins.len() == 0;
            for request in waiting.by_ref().take(*joins.next().unwrap_or(&usize::MAX)) {
                if let Some(number) = submit(&run, request, context_length) {
                    submitted.insert(number, request);
                }
            }
            if let Some(&number) = cancels.next() {
                run.inbox().cancel(number);
            }
            if !run.step(&mut events).unwrap() && is_last {
                break;
            }
            for event in events.drain(..) {
                let output = outputs.entry(event.request).or_default();
                prop_assert!(output.finish == Finish::Cancelled, "an event after the last");
                output.add(event);
            }
        }
        prop_assert!(outputs.keys().eq(submitted.keys()));
        for (number, output) in outputs {
            let expected = alone(submitted[&number], context_length, 11);
            if output.finish == Finish::Cancelled {
                prop_assert!(expected.tokens.starts_with(&output.tokens));
            } else {
                prop_assert_eq!(output, expected);
            }
        }
    }
}

#[test]
fn n_tokens_take_n_calls_whatever_the_batch() {
    for batch in [1, 3, 8] {
        // Half of the tokens come after the window is full.
        let mut run = generation(8, batch, Options::default());
        for first in 0..batch as u32 {
            run.inbox().submit(request(&[first, 2, 3], &greedy(10, 64))).unwrap();
        }
        assert_eq!(run.run().unwrap().len(), batch);
        assert_eq!(run.model.calls, 10);
    }
}

#[test]
fn a_long_prompt_does_not_hold_up_those_that_run() {
    let options = Options { prefill_tokens: 8, ..Options::default() };
    let mut run = generation(200, 2, options);
    let long: Vec<u32> = (0..100).map(|i| i % 11).collect();
    run.inbox().submit(request(&[1], &greedy(20, 200))).unwrap();
    run.inbox().submit(request(&long, &greedy(1, 200))).unwrap();
    let mut events = Vec::new();
    for step in 1..=13 {
        assert!(run.step(&mut events).unwrap());
        let requests: Vec<_> = events.iter().map(|event| event.request).collect();
        assert_eq!(requests, if step < 13 { vec![0] } else { vec![0, 1] });
    }
    assert_eq!(run.model.most_at_once, 9);
}

#[test]
fn sequences_that_slide_take_turns_when_one_step_cannot_read_all_their_windows() {
    let options = Options { prefill_tokens: 6, ..Options::default() };
    let mut run = generation(6, 3, options);
    for first in 0..3 {
        run.inbox().submit(request(&[first, 2, 3, 4, 5, 6], &greedy(30, 6))).unwrap();
    }
    let mut counts = [0_usize; 3];
    let mut events = Vec::new();
    for _ in 0..60 {
        run.step(&mut events).unwrap();
        for event in &events {
            counts[event.request] += 1;
        }
        assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 2, "{counts:?}");
    }
}

#[test]
fn a_cancelled_request_keeps_what_it_has() {
    let mut run = generation(64, 1, Options::default());
    let inbox = Arc::clone(run.inbox());
    let settings = greedy(10, 64);
    for _ in 0..4 {
        inbox.submit(request(&[1, 2], &settings)).unwrap();
    }
    let mut events = Vec::new();
    run.step(&mut events).unwrap();
    assert_eq!((events.len(), inbox.num_waiting()), (1, 3));
    let cancelled = |request| Event { finish: Some(Finish::Cancelled), ..Event::of(request) };
    inbox.cancel(2);
    inbox.cancel(0);
    assert_eq!(inbox.num_waiting(), 2);
    run.step(&mut events).unwrap();
    assert_eq!(events[..2], [cancelled(2), cancelled(0)]);
    assert_eq!((events[2].request, events.len()), (1, 3));
    inbox.cancel_all();
    run.step(&mut events).unwrap();
    assert_eq!(events, [cancelled(3), cancelled(1)]);
    assert!(!run.step(&mut events).unwrap());
    inbox.submit(request(&[1, 2], &settings)).unwrap();
    assert_eq!(run.run().unwrap()[0].tokens.len(), 10);
}

#[test]
fn requests_come_in_from_many_threads_while_the_loop_runs() {
    let mut run = generation(16, 3, Options::default());
    let settings = greedy(7, 16);
    let mut outputs: BTreeMap<usize, Output> = BTreeMap::new();
    let expected = |number: usize| {
        let prompt = [number as u32 % 11, 3];
        alone(&request(&prompt, &settings), 16, 11)
    };
    std::thread::scope(|scope| {
        let inbox = Arc::clone(run.inbox());
        let numbers: Vec<_> = (0..4_u32)
            .map(|thread| {
                let (inbox, settings) = (Arc::clone(&inbox), Arc::clone(&settings));
                scope.spawn(move || {
                    let submit = |i: u32| {
                        let first = (thread * 25 + i) % 11;
                        (inbox.submit(request(&[first, 3], &settings)).unwrap(), first)
                    };
                    (0..25).map(submit).collect::<Vec<_>>()
                })
            })
            .collect();
        let mut events = Vec::new();
        while outputs.values().filter(|o| o.finish == Finish::Length).count() < 100 {
            run.step(&mut events).unwrap();
            events.drain(..).for_each(|e| outputs.entry(e.request).or_default().add(e));
        }
        for (number, first) in numbers.into_iter().flat_map(|thread| thread.join().unwrap()) {
            assert_eq!(outputs[&number], expected(first as usize));
        }
    });
}
