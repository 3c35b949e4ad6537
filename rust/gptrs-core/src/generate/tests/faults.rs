//! What goes wrong names its sequence, ends no other, and leaves a loop that works.

use super::*;

#[test]
fn bad_requests_are_refused_before_anything_runs() {
    let options = Options { queue: 2, ..Options::default() };
    let run = Generation::new(HashModel::new(5, 8, 1), options).unwrap();
    let refusal = |prompt: &[u32], settings: &Arc<Settings>| {
        run.inbox().submit(request(prompt, settings)).unwrap_err().to_string()
    };
    let settings = greedy(1, 8);
    assert_eq!(refusal(&[4, 5], &settings), "token id 5 at [0, 1] is outside 0..4");
    assert_eq!(
        refusal(&[], &settings),
        "prompt 0 has no tokens: at least one is needed to go on from"
    );
    assert_eq!(
        refusal(&[1], &greedy(1, 0)),
        "context_size is at least 1 and a model has at least 1 slot; found 0 and 1"
    );
    let stop = Arc::new(Settings { overflow: Overflow::Stop, ..Settings::greedy(1, 3) });
    assert_eq!(
        refusal(&[1, 2, 3, 4], &stop),
        "prompt 0 has 4 tokens; with overflow=\"stop\" it may have at most 3, the context's length"
    );
    for number in 0..2 {
        assert_eq!(run.inbox().submit(request(&[1], &settings)), Ok(number));
    }
    assert_eq!(refusal(&[1], &settings), "the queue is full: 2 requests wait already");
}

#[test]
fn after_a_models_error_the_loop_goes_on_with_those_that_waited() {
    for fails_at in 1..8 {
        let mut run = generation(16, 2, Options::default());
        run.model.fails_at = Some(fails_at);
        let settings = greedy(6, 16);
        let requests: Vec<_> = (0..4).map(|i| request(&[i, 2, 3], &settings)).collect();
        for request in &requests {
            run.inbox().submit(request.clone()).unwrap();
        }
        let mut events = Vec::new();
        let mut outputs = [const { Vec::new() }; 4];
        let mut failed = Vec::new();
        loop {
            match run.step(&mut events) {
                Ok(true) => events.drain(..).for_each(|e| outputs[e.request].extend(e.token)),
                Ok(false) => break,
                Err(GenerateError::Model(error)) => {
                    assert_eq!(error, format!("call {fails_at} fails"));
                    failed = run.failed().to_vec();
                }
                Err(GenerateError::Core(error)) => panic!("{error}"),
            }
        }
        assert_eq!(failed, if fails_at <= 6 { [0, 1] } else { [2, 3] });
        for (number, request) in requests.iter().enumerate() {
            let expected = alone(request, 16, 11).tokens;
            if failed.contains(&number) {
                assert!(expected.starts_with(&outputs[number]));
            } else {
                assert_eq!(outputs[number], expected);
            }
        }
    }
}

#[test]
fn a_bad_row_ends_its_own_sequence_alone() {
    let mut run = generation(16, 3, Options::default());
    run.model.poison = Some(10);
    let settings = greedy(3, 16);
    let stops_before_10 = |prompt: &[u32]| {
        let settings = Settings { stop_ids: vec![10], ..Settings::greedy(3, 16) };
        alone(&request(prompt, &Arc::new(settings)), 16, 11)
    };
    let good = [[1, 2], [2, 3], [3, 4], [4, 5]].map(|prompt: [u32; 2]| prompt);
    let [a, b] =
        good.iter().filter(|p| stops_before_10(*p).tokens.len() == 3).collect::<Vec<_>>()[..2]
    else {
        unreachable!()
    };
    for prompt in [a, &[1, 10], b] {
        run.inbox().submit(request(prompt, &settings)).unwrap();
    }
    let mut events = Vec::new();
    let error = match run.step(&mut events) {
        Err(GenerateError::Core(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(error.starts_with("sequence 1: "), "{error}");
    assert_eq!(run.failed(), [1]);
    assert_eq!(events.len(), 2);
    let mut tokens = [const { Vec::new() }; 3];
    loop {
        events.drain(..).for_each(|e| tokens[e.request].extend(e.token));
        if !run.step(&mut events).unwrap() {
            break;
        }
    }
    let expected = [stops_before_10(a).tokens, vec![], stops_before_10(b).tokens];
    assert_eq!(tokens, expected);
}

#[test]
fn a_run_that_fails_leaves_nothing_behind() {
    let mut run = generation(16, 2, Options::default());
    run.model.fails_at = Some(3);
    let settings = greedy(6, 16);
    for _ in 0..5 {
        run.inbox().submit(request(&[1, 2], &settings)).unwrap();
    }
    assert!(run.run().is_err());
    assert_eq!((run.failed().len(), run.inbox().num_waiting()), (5, 0));
    let next = request(&[1, 2], &settings);
    run.inbox().submit(next.clone()).unwrap();
    assert_eq!(run.run().unwrap(), [alone(&next, 16, 11)]);
}

#[test]
fn a_check_that_fails_ends_the_run_between_two_steps() {
    let mut run = generation(16, 1, Options::default());
    run.inbox().submit(request(&[1, 2], &greedy(10, 16))).unwrap();
    let mut checks = 0;
    let stopped = run.run_with(|| {
        checks += 1;
        if checks > 4 { Err(Error::Stopped.into()) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(GenerateError::Core(Error::Stopped))));
    assert_eq!(run.model.calls, 4);
}
