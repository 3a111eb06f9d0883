//! What must work whichever instance a request comes to. Each scenario runs
//! against ours and against stock rmcp.

use futures::future::{BoxFuture, FutureExt};
use serde_json::json;

use crate::{
    client::{Result, text},
    fleet::Fleet,
};

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut Fleet) -> BoxFuture<'_, Result>,
    /// Whether A needs a runtime of its own.
    pub(crate) apart: bool,
}

macro_rules! scenarios {
    ($($name:literal => $run:ident $(($apart:ident))?,)+) => {
        pub(crate) const SCENARIOS: &[Scenario] = &[$(Scenario {
            name: $name,
            run: |fleet| $run(fleet).boxed(),
            apart: scenarios!(@ $($apart)?),
        },)+];

        mod ours {
            use crate::{fleet::Kind, run, scenarios::SCENARIOS};
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $run() {
                let scenario = SCENARIOS.iter().find(|scenario| scenario.name == $name);
                run(Kind::Ours, scenario.unwrap()).await.unwrap();
            })+
        }
    };
    (@) => { false };
    (@ apart) => { true };
}

scenarios! {
    "initialize at A, tool call at B" => call_elsewhere,
    "elicitation asked at A, answered at B" => answer_elsewhere,
    "four elicitations at A and B at once, answered at the other one" => parallel_elicitations,
    "50 progress notifications of a call at B, in order" => progress_in_order,
    "resume at A while the call runs" => resume_running_here,
    "resume at A after the call's end" => resume_finished_here,
    "resume at B while the call runs at A" => resume_running_elsewhere,
    "resume at B after the call's end" => resume_finished_elsewhere,
    "cancel at B stops the handler at A and ends its stream" => cancel_elsewhere,
    "after DELETE at B, 404 at A and B" => delete_elsewhere,
    "log messages of a call at A reach a GET held at B" => log_elsewhere,
    "log level set at A holds at B" => level_elsewhere,
    "roots/list_changed at B reaches the handler at A" => notification_elsewhere,
    "`initialized` at B reaches the handler at A, once" => initialized_elsewhere,
    "the same JSON-RPC id and progress token twice in flight" => same_id_twice,
    "another user's request, GET, answer and DELETE get 404" => wrong_principal,
    "an answer that nobody asked for is refused" => unknown_answer,
    "a handler that panics ends its call with an error" => panicking_handler,
    "an instance dies: its calls end with an error at B" => owner_dies (apart),
    "2026-07-28: a call at any instance, a closed stream cancels" => modern,
}

async fn call_elsewhere(fleet: &mut Fleet) -> Result {
    let client = fleet.session().await?;
    let who = client.text(&fleet.b.url, "whoami", json!({})).await?;
    expect(&who, "b")
}

async fn answer_elsewhere(fleet: &mut Fleet) -> Result {
    let client = fleet.session().await?;
    let mut call = client
        .call(&fleet.a.url, 1, "ask", json!({"message": "?"}))
        .await?;
    let question = call.asked().await?;
    client.answer(&fleet.b.url, &question, "from b").await?;
    expect(&text(&call.response().await?)?, "accept: \"from b\"")
}

async fn parallel_elicitations(fleet: &mut Fleet) -> Result {
    let client = fleet.session().await?;
    let (a, b) = (fleet.a.url.as_str(), fleet.b.url.as_str());
    let mut calls = Vec::new();
    for (i, url) in [a, b, a, b].into_iter().enumerate() {
        let message = json!({"message": format!("q{i}")});
        calls.push((url, client.call(url, i, "ask", message).await?));
    }
    let mut questions = Vec::new();
    for (url, call) in &mut calls {
        questions.push((*url, call.asked().await?));
    }
    for (asked_at, question) in questions.iter().rev() {
        let other = if *asked_at == a { b } else { a };
        let answer = format!("re {}", question["params"]["message"].as_str().unwrap());
        client.answer(other, question, &answer).await?;
    }
    for (i, (_, call)) in calls.iter_mut().enumerate() {
        expect(
            &text(&call.response().await?)?,
            &format!("accept: \"re q{i}\""),
        )?;
    }
    Ok(())
}

async fn progress_in_order(fleet: &mut Fleet) -> Result {
    let client = fleet.session().await?;
    fleet.b.probe.steps.add_permits(50);
    let mut call = client
        .call(&fleet.b.url, 1, "count", json!({"n": 50}))
        .await?;
    let (progress, text) = call.counted().await?;
    exactly(&progress, 1..=50)?;
    expect(&text, "counted 50")
}

/// Reads two steps of a call at A and loses the connection. Gives the id of
/// the last event.
async fn cut_after_two(fleet: &Fleet, client: &crate::client::Client) -> Result<String> {
    fleet.a.probe.steps.add_permits(2);
    let mut call = client
        .call(&fleet.a.url, 1, "count", json!({"n": 6}))
        .await?;
    for _ in 0..2 {
        call.message().await?;
    }
    call.last.clone().ok_or_else(|| "no event ids".to_owned())
}

async fn resume_at(fleet: &Fleet, url: &str, finished: bool) -> Result {
    let client = fleet.session().await?;
    let last = cut_after_two(fleet, &client).await?;
    let mut rest = if finished {
        fleet.a.probe.steps.add_permits(4);
        if !fleet.a.probe.sees("counted", fleet.patience()).await {
            return Err("the call does not end".into());
        }
        // A later call at A; when it is answered, so is the first.
        client
            .text(&fleet.a.url, "echo", json!({"message": "sync"}))
            .await?;
        client.resume(url, Some(&last)).await?
    } else {
        let rest = client.resume(url, Some(&last)).await?;
        fleet.a.probe.steps.add_permits(4);
        rest
    };
    let counted = rest.counted().await;
    let (progress, text) = if finished {
        counted.map_err(|_| "the result is lost")?
    } else {
        counted?
    };
    exactly(&progress, 3..=6)?;
    expect(&text, "counted 6")?;
    rest.ends().await
}

async fn resume_running_here(fleet: &mut Fleet) -> Result {
    resume_at(fleet, &fleet.a.url, false).await
}

async fn resume_finished_here(fleet: &mut Fleet) -> Result {
    resume_at(fleet, &fleet.a.url, true).await
}

async fn resume_running_elsewhere(fleet: &mut Fleet) -> Result {
    resume_at(fleet, &fleet.b.url, false).await
}

async fn resume_finished_elsewhere(fleet: &mut Fleet) -> Result {
    resume_at(fleet, &fleet.b.url, true).await
}

async fn cancel_elsewhere(fleet: &mut Fleet) -> Result {
    let client = fleet.session().await?;
    let mut call = client
        .call(&fleet.a.url, 7, "count", json!({"n": 5}))
        .await?;
    if !fleet.a.probe.sees("counting", fleet.patience()).await {
        return Err("the call does not start".into());
    }
    let params = json!({"requestId": 7, "reason": "enough"});
    client
        .tell(&fleet.b.url, "notifications/cancelled", params)
        .await?;
    if !fleet.a.probe.sees("cancelled", fleet.patience()).await {
        return Err("the handler runs on".into());
    }
    call.ends().await
}

async fn delete_elsewhere(fleet: &mut Fleet) -> Result {
    let client = fleet.session().await?;
    client.text(&fleet.a.url, "whoami", json!({})).await?;
    let status = client.delete(&fleet.b.url).await?;
    if !matches!(status, 200..=299) {
        return Err(format!("DELETE: {status}"));
    }
    for instance in [&fleet.a, &fleet.b] {
        let post = client.text(&instance.url, "whoami", json!({})).await;
        let get = client.get(&instance.url, None).await?.status().as_u16();
        for status in [
            post.map_or_else(|failure| failure, |_| "200".into()),
            get.to_string(),
        ] {
            if status != "404" {
                return Err(format!(
                    "{status} at {}",
                    instance.probe.name.to_uppercase()
                ));
            }
        }
    }
    Ok(())
}

async fn log_elsewhere(fleet: &mut Fleet) -> Result {
    let client = fleet.session().await?;
    let mut listening = client.resume(&fleet.b.url, None).await?;
    client.text(&fleet.a.url, "log", json!({"n": 3})).await?;
    for i in 1..=3 {
        let message = listening.message().await?;
        expect(&message["params"]["data"].to_string(), &i.to_string())?;
    }
    Ok(())
}

async fn level_elsewhere(fleet: &mut Fleet) -> Result {
    let client = fleet.session().await?;
    let params = json!({"level": "warning"});
    let mut set = client
        .request(&fleet.a.url, json!(1), "logging/setLevel", params)
        .await?;
    set.response().await?;
    expect(
        &client.text(&fleet.b.url, "level", json!({})).await?,
        "warning",
    )
}

async fn notification_elsewhere(fleet: &mut Fleet) -> Result {
    let client = fleet.session().await?;
    client
        .tell(&fleet.b.url, "notifications/roots/list_changed", json!({}))
        .await?;
    if fleet.a.probe.sees("roots", fleet.patience()).await {
        Ok(())
    } else {
        Err("A never hears of it".into())
    }
}

async fn initialized_elsewhere(fleet: &mut Fleet) -> Result {
    let mut client = fleet.client();
    client.initialize_as(&fleet.a.url, "raw").await?;
    client
        .tell(&fleet.b.url, "notifications/initialized", json!({}))
        .await?;
    if !fleet.a.probe.sees("initialized", fleet.patience()).await {
        return Err("A never hears of it".into());
    }
    // A worker at B, which has not to hear of it again.
    client.text(&fleet.b.url, "whoami", json!({})).await?;
    let times = [&fleet.a, &fleet.b].map(|instance| instance.probe.times("initialized"));
    expect(&format!("{times:?}"), "[1, 0]")
}

async fn same_id_twice(fleet: &mut Fleet) -> Result {
    let client = fleet.session().await?;
    let mut long = client
        .call(&fleet.a.url, 1, "count", json!({"n": 3}))
        .await?;
    let mut short = client
        .call(&fleet.a.url, 1, "count", json!({"n": 2}))
        .await?;
    fleet.a.probe.steps.add_permits(5);
    let (short, long) = (short.counted().await?, long.counted().await?);
    exactly(&short.0, 1..=2)?;
    expect(&short.1, "counted 2")?;
    exactly(&long.0, 1..=3)?;
    expect(&long.1, "counted 3")
}

async fn wrong_principal(fleet: &mut Fleet) -> Result {
    let mut alice = fleet.client().as_user("alice");
    alice.initialize(&fleet.a.url).await?;
    let mut call = alice
        .call(&fleet.a.url, 1, "ask", json!({"message": "?"}))
        .await?;
    let question = call.asked().await?;
    let mallory = alice.as_user("mallory");
    let last = call.last.clone();
    let url = &fleet.a.url;
    let post = mallory.text(url, "whoami", json!({})).await;
    let statuses = [
        post.map_or_else(|failure| failure, |_| "200".into()),
        mallory.get(url, None).await?.status().as_str().to_owned(),
        mallory
            .get(url, last.as_deref())
            .await?
            .status()
            .as_str()
            .to_owned(),
        (mallory.answer(url, &question, "forged").await)
            .map_or_else(|failure| failure, |()| "202".into()),
        mallory.delete(url).await?.to_string(),
    ];
    expect(&statuses.join(" "), "404 404 404 404 404")?;
    alice.answer(url, &question, "mine").await?;
    expect(&text(&call.response().await?)?, "accept: \"mine\"")
}

async fn unknown_answer(fleet: &mut Fleet) -> Result {
    let client = fleet.session().await?;
    let answer = client.answer(&fleet.a.url, &json!({"id": 7}), "!").await;
    expect(
        &answer.map_or_else(|failure| failure, |()| "202".into()),
        "400",
    )
}

async fn panicking_handler(fleet: &mut Fleet) -> Result {
    let client = fleet.session().await?;
    let mut call = client.call(&fleet.a.url, 1, "panic", json!({})).await?;
    let response = call.response().await?;
    expect(&response["error"]["code"].to_string(), "-32603")
}

async fn owner_dies(fleet: &mut Fleet) -> Result {
    let client = fleet.session().await?;
    fleet.a.probe.steps.add_permits(1);
    let mut call = client
        .call(&fleet.a.url, 1, "count", json!({"n": 9}))
        .await?;
    call.message().await?;
    let last = call.last.clone();
    fleet.a.kill().await;
    let mut rest = client.resume(&fleet.b.url, last.as_deref()).await?;
    let response = rest.response().await?;
    expect(&response["id"].to_string(), "1")?;
    expect(&response["error"].is_object().to_string(), "true")?;
    expect(&client.text(&fleet.b.url, "whoami", json!({})).await?, "b")
}

async fn modern(fleet: &mut Fleet) -> Result {
    let client = fleet.client();
    let call = |tool: &str, n: u64| {
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
            "name": tool,
            "arguments": {"n": n},
            "_meta": {
                "progressToken": "t",
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        }})
    };
    for instance in [&fleet.a, &fleet.b] {
        let mut events = client.modern(&instance.url, &call("whoami", 0)).await?;
        expect(&text(&events.response().await?)?, instance.probe.name)?;
    }
    fleet.b.probe.steps.add_permits(1);
    let mut running = client.modern(&fleet.b.url, &call("count", 9)).await?;
    running.message().await?;
    drop(running);
    if fleet.b.probe.sees("cancelled", fleet.patience()).await {
        Ok(())
    } else {
        Err("the handler runs on".into())
    }
}

fn expect(got: &str, wanted: &str) -> Result {
    if got == wanted {
        Ok(())
    } else {
        Err(format!("{got}, not {wanted}"))
    }
}

fn exactly(got: &[u64], wanted: impl IntoIterator<Item = u64>) -> Result {
    let wanted: Vec<_> = wanted.into_iter().collect();
    if got == wanted {
        Ok(())
    } else {
        Err(format!("progress {got:?}, not {wanted:?}"))
    }
}
