use serde_json::json;

use super::*;

fn expect(n: u64) -> Expect {
    Expect {
        id: json!(7),
        progress: Some((json!("t"), n)),
        text: Some(format!("counted {n}")),
        ..Expect::default()
    }
}

fn seen(event_id: &str, message: Value) -> Seen {
    Seen {
        event_id: Some(event_id.into()),
        message,
    }
}

fn progress(id: &str, n: u64, total: u64) -> Seen {
    let params = json!({ "progressToken": "t", "progress": n, "total": total });
    seen(
        id,
        json!({ "method": "notifications/progress", "params": params }),
    )
}

fn result(id: &str, rpc: i64, text: &str) -> Seen {
    seen(
        id,
        json!({ "id": rpc, "result": { "content": [{ "type": "text", "text": text }] } }),
    )
}

fn history() -> Vec<Seen> {
    vec![
        seen("p", Value::Null),
        progress("a", 1, 3),
        progress("b", 2, 3),
        progress("c", 3, 3),
        result("d", 7, "counted 3"),
    ]
}

fn verdict(lost: u64, duplicated: u64, wrong: u64) -> Verdict {
    Verdict {
        lost,
        duplicated,
        wrong,
    }
}

#[test]
fn a_good_history_is_good() {
    assert_eq!(
        call(&expect(3), &history(), End::Answered),
        Verdict::default()
    );
}

#[test]
fn each_missing_event_counts() {
    for missing in 1..5 {
        let mut history = history();
        history.remove(missing);
        assert_eq!(
            call(&expect(3), &history, End::Answered),
            verdict(1, 0, 0),
            "{missing}"
        );
    }
    assert_eq!(call(&expect(3), &[], End::Answered), verdict(4, 0, 0));
}

#[test]
fn each_repeated_event_counts_under_its_id_or_another() {
    for repeated in 0..5 {
        let mut history = history();
        history.push(history[repeated].clone());
        assert_eq!(
            call(&expect(3), &history, End::Answered),
            verdict(0, 1, 0),
            "{repeated}"
        );
    }
    for repeated in 1..5 {
        let mut history = history();
        let again = Seen {
            event_id: Some("z".into()),
            ..history[repeated].clone()
        };
        history.push(again);
        assert_eq!(
            call(&expect(3), &history, End::Answered),
            verdict(0, 1, 0),
            "{repeated}"
        );
    }
}

#[test]
fn swapped_events_are_out_of_order() {
    let mut swapped = history();
    swapped.swap(1, 2);
    assert_eq!(call(&expect(3), &swapped, End::Answered), verdict(0, 0, 1));
    let relaxed = Expect {
        unordered: true,
        ..expect(3)
    };
    assert_eq!(call(&relaxed, &swapped, End::Answered), Verdict::default());
}

#[test]
fn events_of_another_call_are_wrong() {
    // The same token and id, but the other call's count.
    let mut foreign = history();
    foreign[1] = progress("a", 1, 5);
    assert_eq!(call(&expect(3), &foreign, End::Answered), verdict(1, 0, 1));
    let mut foreign = history();
    foreign[4] = result("d", 7, "counted 5");
    assert_eq!(call(&expect(3), &foreign, End::Answered), verdict(0, 0, 1));
    let mut foreign = history();
    foreign[4] = result("d", 8, "counted 3");
    assert_eq!(call(&expect(3), &foreign, End::Answered), verdict(1, 0, 1));
}

#[test]
fn a_resume_must_go_on_strictly_after_its_cursor() {
    let resumed = Expect {
        after: 1,
        ..expect(3)
    };
    assert_eq!(
        call(&resumed, &history()[2..], End::Answered),
        Verdict::default()
    );
    assert_eq!(
        call(&resumed, &history()[1..], End::Answered),
        verdict(0, 1, 0)
    );
    assert_eq!(
        call(&resumed, &history()[3..], End::Answered),
        verdict(1, 0, 0)
    );
}

#[test]
fn a_broken_call_needs_no_end_but_has_no_hole_either() {
    assert_eq!(
        call(&expect(3), &history()[..3], End::Broken),
        Verdict::default()
    );
    let hole = [history()[0].clone(), history()[2].clone()];
    assert_eq!(call(&expect(3), &hole, End::Broken), verdict(1, 0, 0));
}

#[test]
fn a_cancelled_call_has_no_answer() {
    assert_eq!(
        call(&expect(3), &history()[..2], End::Cancelled),
        Verdict::default()
    );
    assert_eq!(
        call(&expect(3), &history(), End::Cancelled),
        verdict(0, 0, 1)
    );
}

#[test]
fn questions_are_asked_once_and_by_their_own_call() {
    let ask = |id: &str, rpc: i64, text: &str| {
        let params = json!({ "message": text });
        seen(
            id,
            json!({ "id": rpc, "method": "elicitation/create", "params": params }),
        )
    };
    let expect = Expect {
        id: json!(7),
        questions: vec!["mine".into()],
        text: Some("accept: re: mine true".into()),
        ..Expect::default()
    };
    let good = [ask("a", 0, "mine"), result("b", 7, "accept: re: mine true")];
    assert_eq!(call(&expect, &good, End::Answered), Verdict::default());
    let twice = [ask("a", 0, "mine"), ask("c", 1, "mine"), good[1].clone()];
    assert_eq!(call(&expect, &twice, End::Answered), verdict(0, 1, 0));
    let foreign = [ask("a", 0, "mine"), ask("c", 1, "yours"), good[1].clone()];
    assert_eq!(call(&expect, &foreign, End::Answered), verdict(0, 0, 1));
    let swapped = [good[0].clone(), result("b", 7, "accept: re: yours true")];
    assert_eq!(call(&expect, &swapped, End::Answered), verdict(0, 0, 1));
    assert_eq!(call(&expect, &good[1..], End::Answered), verdict(1, 0, 0));
}

#[test]
fn logs_are_judged_by_tag() {
    let log = |id: &str, tag: &str, n: u64| {
        let data = json!({ "n": n, "of": 2, "tag": tag });
        let params = json!({ "level": "info", "data": data });
        seen(
            id,
            json!({ "method": "notifications/message", "params": params }),
        )
    };
    let expected = |excused| {
        vec![
            ExpectedLogs {
                tag: "x".into(),
                total: 2,
                excused: false,
            },
            ExpectedLogs {
                tag: "y".into(),
                total: 2,
                excused,
            },
        ]
    };
    let all = [
        log("1", "x", 1),
        log("2", "y", 1),
        log("3", "x", 2),
        log("4", "y", 2),
    ];
    assert_eq!(logs(&expected(false), &all, true), Verdict::default());
    assert_eq!(logs(&expected(false), &all[..3], true), verdict(1, 0, 0));
    assert_eq!(logs(&expected(true), &all[..3], true), Verdict::default());
    let again = [all.as_slice(), &[log("5", "x", 1)]].concat();
    assert_eq!(logs(&expected(false), &again, true), verdict(0, 1, 0));
    let foreign = [all.as_slice(), &[log("5", "z", 1)]].concat();
    assert_eq!(logs(&expected(false), &foreign, true), verdict(0, 0, 1));
    let swapped = [
        log("3", "x", 2),
        log("1", "x", 1),
        log("2", "y", 1),
        log("4", "y", 2),
    ];
    assert_eq!(logs(&expected(false), &swapped, true), verdict(0, 0, 1));
}

#[test]
fn whole_numbers_in_both_spellings() {
    assert_eq!(whole(&json!(3)), Some(3));
    assert_eq!(whole(&json!(3.0)), Some(3));
    assert_eq!(whole(&json!(3.5)), None);
    assert_eq!(whole(&json!(-1.0)), None);
    assert_eq!(whole(&json!("3")), None);
}
