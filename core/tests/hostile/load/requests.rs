//! Client requests, with several who answer at once.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use mcp_adapter_core::{
    Answer, ClientRequestAdapter, NewClientRequest, OutcomeKind, PendingRequest, RpcId,
};

use super::{Client, Group, Load, number_in, pause};
use crate::{
    fleet::{Bound, Instance},
    history::{No, What, Written},
    rng::Rng,
};

fn key(request: No) -> RpcId {
    RpcId::String(format!("q{request}").into())
}

impl Load {
    pub(crate) async fn ask(self: Arc<Self>, client: Client, mut rng: Rng) {
        let request = self.number();
        let times = if rng.chance(200) { 2 } else { 1 };
        for _ in 0..times {
            self.ask_once(&client, request, &mut rng).await;
            pause(&mut rng, 0, 3000).await;
        }
    }

    async fn ask_once(self: &Arc<Self>, client: &Client, request: No, rng: &mut Rng) {
        let wait = self.number();
        let instance = self.fleet.pick(rng);
        let Some(engine) = instance.engine() else {
            return;
        };
        let timeout = if rng.chance(300) {
            rng.millis(50, 2000)
        } else {
            rng.millis(2000, 25_000)
        };
        let new = NewClientRequest::new(key(request)).with_timeout(timeout);
        let began = self.history.now();
        self.history.push(What::Ask {
            request,
            wait,
            session: client.no,
            instance: instance.no,
        });
        let creating = ClientRequestAdapter::create(&engine, &client.id, new);
        let Some(created) = instance
            .run("create request", Bound::Operation, creating)
            .await
        else {
            return;
        };
        if let Err(error) = &created {
            self.missed(client, began, error);
        }
        let done = Written::of(created.as_ref(), |_| ());
        self.history.push(What::Asked { wait, done });
        let Ok(pending) = created else {
            return;
        };
        // Only now it goes to the client, which answers wherever it likes.
        for number in 0..rng.below(4) {
            let load = Arc::clone(self);
            let (client, after) = (client.clone(), rng.millis(0, 6000));
            let rng = rng.fork("answer", number);
            let answer = self.number();
            self.spawn(
                Group::Work,
                format!("answer {answer} to {request}"),
                async move {
                    tokio::time::sleep(after).await;
                    load.answer(client, (request, answer), rng).await;
                },
            );
        }
        if rng.chance(120) {
            let load = Arc::clone(self);
            let (client, after) = (client.clone(), rng.millis(0, 6000));
            let rng = rng.fork("withdrawal", 0);
            self.spawn(
                Group::Work,
                format!("withdrawal of {request}"),
                async move {
                    tokio::time::sleep(after).await;
                    load.revoke(client, request, rng).await;
                },
            );
        }
        let gives_up = rng.chance(80).then(|| rng.millis(0, 5000));
        let load = Arc::clone(self);
        let client = client.clone();
        self.spawn(
            Group::Work,
            format!("wait {wait} for {request}"),
            async move {
                load.wait(&client, &instance, (wait, pending), timeout, gives_up)
                    .await;
            },
        );
    }

    async fn wait(
        &self,
        client: &Client,
        instance: &Instance,
        (wait, pending): (No, PendingRequest),
        timeout: Duration,
        gives_up: Option<Duration>,
    ) {
        let bound = Bound::Outage(timeout + self.fleet.limits.max_outage());
        let patience = gives_up.unwrap_or(Duration::from_secs(86_400));
        let waiting = tokio::time::timeout(patience, pending);
        match instance.run(&format!("wait {wait}"), bound, waiting).await {
            Some(Ok(outcome)) => {
                let kind = outcome.kind;
                let answer = number_in(&outcome.payload, 'a');
                self.history.push(What::Outcome { wait, kind, answer });
                if kind == OutcomeKind::SessionEnded {
                    self.found(client, self.history.now(), false, false);
                }
            }
            Some(Err(_)) => self.history.push(What::Withdrawn { wait }),
            None => {}
        }
    }

    async fn answer(self: Arc<Self>, client: Client, (request, answer): (No, No), mut rng: Rng) {
        let instance = self.fleet.pick(&mut rng);
        let Some(engine) = instance.engine() else {
            return;
        };
        let payload = Bytes::from(format!("a{answer}"));
        let content = if rng.chance(200) {
            Answer::Error(payload)
        } else {
            Answer::Result(payload)
        };
        self.history.push(What::Answer { request, answer });
        let id = key(request);
        let answering = engine.answer(&client.id, &id, content);
        if let Some(done) = instance.run("answer", Bound::Operation, answering).await {
            let done = Written::of(done.as_ref(), |done| *done);
            self.history.push(What::Answered { answer, done });
        }
    }

    async fn revoke(self: Arc<Self>, client: Client, request: No, mut rng: Rng) {
        let instance = self.fleet.pick(&mut rng);
        let Some(engine) = instance.engine() else {
            return;
        };
        self.history.push(What::Revoke { request });
        let id = key(request);
        let revoking = ClientRequestAdapter::cancel(&engine, &client.id, &id);
        if let Some(done) = instance.run("withdraw", Bound::Operation, revoking).await {
            let done = Written::of(done.as_ref(), |done| *done);
            self.history.push(What::RevokeDone { request, done });
        }
    }
}
