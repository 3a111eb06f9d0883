//! What is found out at the start, so that it is not found out by a user.

use futures::StreamExt as _;
use mcp_adapter_core::{InstanceId, PrincipalKey, Result, SessionId};
use redis::{Cmd, Value};

use crate::{
    doorbell, error,
    keys::{Partition, session_name},
    router::Router,
    script::{self, Script},
    server::{Call, Identity, Lane},
    storage::RedisStorage,
};

/// Whether the server is recent enough.
pub(crate) fn version(identity: &Identity) -> Result<()> {
    if identity.recent {
        return Ok(());
    }
    Err(error::unusable(format!(
        "{} is too old: Redis 7.0 or Valkey 7.2 is needed",
        identity.version
    )))
}

/// Tries all that the adapter will do, under a hash tag of its own: a right that
/// is missing shows now. Nothing is left of it.
pub(crate) async fn rights(storage: &RedisStorage) -> Result<()> {
    let router = &storage.router;
    let calls = trial(router);
    let answers = router.run(Lane::Control, "connect", calls).await?;
    for answer in answers {
        if let Value::ServerError(refused) = answer {
            let error = error::server("connect", &refused);
            return Err(match script::denied(&refused) {
                Some(command) => error::unusable(format!(
                    "the user lacks a right that is needed: the command {command}"
                ))
                .with_source(error),
                None => error,
            });
        }
    }
    let bell = doorbell::open(storage.clone(), InstanceId::generate()).await?;
    drop(bell.boxed());
    Ok(())
}

fn native(args: &[&[u8]]) -> Call {
    let mut command = Cmd::new();
    for arg in args {
        command.arg(arg);
    }
    Call {
        partition: Partition::Check,
        command,
        script: None,
        generation: false,
    }
}

fn trial(router: &Router) -> Vec<Call> {
    let principal = PrincipalKey::ANONYMOUS;
    let name = session_name(&SessionId::generate().key());
    let root = router.names.of(Partition::Check, &name);
    let of = |script| router.script(script, Partition::Check, &root);
    let at = |script, part: &str| {
        let key = router.names.of(Partition::Check, part);
        router.script(script, Partition::Check, &key)
    };
    let me = InstanceId::generate().to_string();
    let mut create = of(Script::Create);
    create
        .command
        .arg(&principal.0)
        .arg(&[0_u8; 16])
        .arg("{}")
        .arg(10_000)
        .arg("");
    create.generation = true;
    let mut enter = of(Script::Enter);
    enter
        .command
        .arg(&principal.0)
        .arg("s")
        .arg(&me)
        .arg("n1")
        .arg(1)
        .arg(u64::MAX)
        .arg(0);
    let append = |position: &str, finish: &str| {
        let mut append = of(Script::Append);
        append.command.arg("s").arg("W").arg(1);
        append
            .command
            .arg(format!("o{me}"))
            .arg(position)
            .arg("")
            .arg(1)
            .arg("x")
            .arg(finish)
            .arg("f");
        append.command.arg(10).arg(10).arg("1-1").arg(&me);
        append.generation = true;
        append
    };
    let events = format!("{root}:e:s");
    let xadd = native(&[
        b"XADD",
        events.as_bytes(),
        b"NOMKSTREAM",
        b"MINID",
        b"=",
        b"1-1",
        b"1-2",
        b"d",
        b"x",
    ]);
    let holds = native(&[b"GET", router.names.of(Partition::Check, "v").as_bytes()]);
    let mut hold = of(Script::Hold);
    hold.command
        .arg("s")
        .arg(&me)
        .arg("t")
        .arg("")
        .arg("")
        .arg("");
    hold.generation = true;
    let mut put = of(Script::Put);
    put.command
        .arg("n1")
        .arg("token")
        .arg(&me)
        .arg(1000)
        .arg(1000)
        .arg(1);
    let mut settle = of(Script::Settle);
    settle
        .command
        .arg("n1")
        .arg("")
        .arg("a")
        .arg("x")
        .arg("")
        .arg("")
        .arg("t")
        .arg("W");
    let mut account = of(Script::Account);
    account.command.arg("s");
    let mut read = of(Script::Read);
    read.command.arg("s").arg("0-0").arg(1).arg(1).arg(1);
    let mut shrink = of(Script::Shrink);
    shrink.command.arg(0);
    let mut update = of(Script::Update);
    update
        .command
        .arg(&principal.0)
        .arg(1)
        .arg(&[0_u8; 16])
        .arg("{}");
    let mut beat = at(Script::Beat, "h");
    beat.command.arg(&me).arg(1).arg(1000);
    let mut sweep = at(Script::Sweep, "i");
    sweep.command.arg(1);
    let mut delete = of(Script::Delete);
    delete.command.arg(&principal.0).arg(1000);
    let door = router.names.door(Partition::Check, InstanceId(0));
    let publish = if router.names.cluster {
        "SPUBLISH"
    } else {
        "PUBLISH"
    };
    let publish = native(&[publish.as_bytes(), door.as_bytes(), b"E"]);
    vec![
        create,
        enter,
        append("1-1", ""),
        xadd,
        holds,
        hold,
        put,
        settle,
        account,
        read,
        update,
        append("1-3", "1000"),
        shrink,
        beat,
        at(Script::Stats, "i"),
        sweep,
        publish,
        delete,
    ]
}
