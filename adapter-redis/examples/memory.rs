//! Measures what sessions and streams cost the server, on a server of its own.

use std::error::Error;

use bytes::Bytes;
use mcp_adapter_conformance::server::Redis;
use mcp_adapter_core::{Limits, RpcId, SessionAdapter, SessionId, SessionRecord};
use mcp_adapter_redis::RedisAdapter;

const MANY: i64 = 5_000;

fn used(server: &Redis) -> Result<i64, Box<dyn Error>> {
    let info = server.command(&["INFO", "memory"])?;
    let used = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"));
    Ok(used.ok_or("no used_memory")?.trim().parse()?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = Redis::start(&[])?;
    let adapter = RedisAdapter::connect(&server.url(), Limits::default()).await?;
    let record = SessionRecord {
        protocol: "2025-11-25".into(),
        client: serde_json::json!({"name": "example-client", "version": "1.0.0"}),
        capabilities: serde_json::json!({"elicitation": {"form": {}}}),
        ..SessionRecord::default()
    };
    let event = Bytes::from_static(&[b'x'; 256]);
    adapter.stats().await?;
    let mut before = used(&server)?;
    let mut tell = |what: &str| {
        let now = used(&server)?;
        println!("| {what} | {} |", (now - before) / MANY);
        before = now;
        Ok::<_, Box<dyn Error>>(())
    };
    println!("| what | bytes |\n|---|---|");
    let mut ids = Vec::new();
    for _ in 0..MANY {
        let id = SessionId::generate();
        adapter.create(&id, record.clone()).await?;
        ids.push(id);
    }
    tell("an idle session with 150 bytes of record")?;
    for id in &ids {
        let entered = adapter.enter(id, None, Some(&RpcId::Number(1))).await?;
        let writer = entered.writer.ok_or("no writer")?;
        writer.finish(Some(event.clone())).await?;
    }
    tell("its first finished call of one event of 256 bytes")?;
    for id in &ids {
        let entered = adapter.enter(id, None, Some(&RpcId::Number(2))).await?;
        let writer = entered.writer.ok_or("no writer")?;
        writer.finish(Some(event.clone())).await?;
    }
    tell("each further one, for 60 seconds")?;
    let mut writers = Vec::new();
    for id in &ids {
        let entered = adapter.enter(id, None, Some(&RpcId::Number(3))).await?;
        writers.push(entered.writer.ok_or("no writer")?);
    }
    tell("a running call without an event")?;
    for writer in &writers {
        writer.append(event.clone()).await?;
    }
    tell("its first event of 256 bytes")?;
    for _ in 0..9 {
        for writer in &writers {
            writer.append(event.clone()).await?;
        }
    }
    tell("nine more")?;
    for id in &ids {
        adapter.delete(id, None).await?;
    }
    drop(writers);
    tell("all of it, deleted")?;
    Ok(())
}
