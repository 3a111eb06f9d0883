//! Starts and versions: F5.

use futures::future::{join_all, try_join_all};
use mcp_adapter_core::SessionRecord;
use serde_json::json;

use super::fresh_stats;
use crate::{
    fleet::Fleet,
    instance::record,
    wait::{Failure, Verdict, claim_eq},
};

pub(crate) async fn ten_instances_start_at_once(fleet: Fleet) -> Verdict {
    // On a store that nobody has prepared.
    let instances = try_join_all((0..10).map(|_| fleet.instance())).await?;
    let created = join_all(instances.iter().map(|instance| instance.session())).await;
    for (n, id) in created.into_iter().enumerate() {
        let (id, reader) = (id?, &instances[(n + 1) % 10]);
        reader.append(&id, "event").await?;
        let seen = instances[(n + 2) % 10].look(&id, None).await?;
        claim_eq!(*seen.record, record());
    }
    let stats = fresh_stats(&fleet, &instances[0]).await?;
    claim_eq!(stats.sessions.value(), 10);
    // One more on the store that is in use.
    let late = fleet.instance().await?;
    claim_eq!(fresh_stats(&fleet, &late).await?.events.value(), 10);
    Ok(())
}

pub(crate) async fn fields_of_other_versions_survive(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = mcp_adapter_core::SessionId::generate();
    let mut newer = record();
    newer
        .extra
        .insert("of a newer version".into(), json!({"a": [1, null, "x"]}));
    let created = a.create(&id, newer.clone()).await?;
    // A version that does not know the field changes another one.
    let found = b.look(&id, None).await?.record;
    let mut found = SessionRecord::clone(&found);
    found.initialized = true;
    b.update(&id, created.revision, found).await?;
    newer.initialized = true;
    let again = a.look(&id, None).await?.record;
    let same = |record: &SessionRecord| serde_json::to_value(record).map_err(Failure::new);
    claim_eq!(same(&again)?, same(&newer)?);
    Ok(())
}
