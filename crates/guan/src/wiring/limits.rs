//! Joins the limiter with what it is rebuilt from, and with whoever asks the admin API how it stands. Called by
//! `wiring`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use control::api::{LimitRow, LimitsNow};
use control::keys::KeyRow;
use control::store::{Store, StoreFault};
use control::usage;
use gateway::limits::backend::Limits;
use gateway::state::{Clock, Gateway};
use rules::chain::PastCall;
use rules::key::KeyId;
use rules::limit::{Amounts, Class, Demand, Plan, Scope, Span, Standing, period};
use rules::policy::effective;
use rules::snapshot::{Key, Keys};
use wire::control::Start;

use crate::config::Config;

/// The limits of this node's calls: its own, or those that nodes share.
///
/// # Errors
/// When a thread can't be started.
pub(super) fn open(
    node: &str,
    start: &Start,
    clock: Clock,
    config: &Config,
) -> std::io::Result<Limits> {
    match &config.shared {
        None => Ok(Limits::new(node)),
        Some(shared) => {
            // No two processes of one node have the same, so a new one holds nothing of what the old one held.
            let life = format!("{node}/{}/{}", start.generation, clock.unix_ns());
            Limits::shared(node, life, shared.clone())
        }
    }
}

/// Counts past calls again, and fills budgets with what the store knows of.
///
/// # Errors
/// When the store doesn't answer.
pub(super) async fn rebuild(
    limits: &Limits,
    past: &mut [PastCall],
    (known, by_id): (&Keys, &HashMap<KeyId, Arc<Key>>),
    (config, clock): (&Config, Clock),
    from: (&Store, &Path, &str),
) -> Result<(), StoreFault> {
    recount(limits, past, known, by_id, config);
    fill(limits, from, known, by_id, (config, clock)).await
}

/// Counts past calls again, by each key's policy of now; those that died with their process are ended.
fn recount(
    limits: &Limits,
    past: &mut [PastCall],
    known: &Keys,
    by_id: &HashMap<KeyId, Arc<Key>>,
    config: &Config,
) {
    let settings = &config.settings;
    past.sort_by_key(|call| call.taken_ns);
    for call in past.iter() {
        let key = KeyId::parse(&call.key).ok().and_then(|id| by_id.get(&id));
        let Some(key) = key else { continue };
        let Some(role) = settings.roles.get(&*key.role) else {
            continue;
        };
        let project = key.project.as_ref().and_then(|name| known.project(name));
        let policy = effective(role, project.map(|p| &p.own), key.own.as_deref());
        let model = call
            .model
            .as_ref()
            .and_then(|name| settings.models.get(name));
        let price = model.map(|model| model.price).unwrap_or_default();
        let plan = limits.plan(
            key.id.into(),
            &policy,
            call.project.as_deref(),
            model.map(AsRef::as_ref),
            &settings.node,
        );
        let amounts = Amounts::of(call.charged.input, call.charged.output, &price);
        if let Some((id, reserved)) = call.cut {
            let reserved = Amounts::of(reserved.input, reserved.output, &price);
            limits.bury(id, plan.clone(), (&reserved, &amounts));
        }
        limits.replay(plan, &amounts, call.taken_ns / 1000);
    }
}

/// Budgets start from what the store knows to be spent in their periods, this node's chains counted to their ends.
///
/// # Errors
/// When the store doesn't answer.
async fn fill(
    limits: &Limits,
    (store, audit, node): (&Store, &Path, &str),
    known: &Keys,
    by_id: &HashMap<KeyId, Arc<Key>>,
    (config, clock): (&Config, Clock),
) -> Result<(), StoreFault> {
    let (settings, now) = (&config.settings, clock.unix_us());
    let plan_of = |key: &Key| {
        let role = settings.roles.get(&*key.role)?;
        let project = key.project.as_ref().and_then(|name| known.project(name));
        let policy = effective(role, project.map(|p| &p.own), key.own.as_deref());
        let project = key.project.as_deref();
        let plan = limits.plan(key.id.into(), &policy, project, None, &settings.node);
        plan.has_budget().then_some(plan)
    };
    let of_models = settings.models.values().map(|model| {
        let mut plan = Plan::new();
        plan.add(Scope::named(Class::Model, &model.name), model.pool.each());
        plan
    });
    let of_keys = by_id.values().filter_map(|key| plan_of(key));
    let plans: Vec<Plan> = of_models.filter(Plan::has_budget).chain(of_keys).collect();
    if plans.is_empty() {
        return Ok(());
    }
    usage::catch_up(store, audit.to_path_buf(), node).await?;
    let mut totals: HashMap<(Scope, Span), Amounts> = HashMap::new();
    for span in [Span::Day, Span::Week, Span::Month] {
        for row in store.spent_since(period(span, now).first_day()).await? {
            let model = settings.models.get(row.model.as_str());
            let price = model.map(|model| model.price).unwrap_or_default();
            let amounts = Amounts::of(row.input, row.output, &price);
            let key = KeyId::parse(&row.key).ok();
            let role = key.and_then(|id| by_id.get(&id)).map(|key| &*key.role);
            let holders = [
                key.map(|id| Scope::caller(id.into())),
                role.map(|name| Scope::named(Class::Role, name)),
                Some(Scope::named(Class::Project, &row.project)),
                Some(Scope::named(Class::Model, &row.model)),
            ];
            for holder in holders.into_iter().flatten() {
                let total = totals.entry((holder, span)).or_default();
                total.input = total.input.saturating_add(amounts.input);
                total.output = total.output.saturating_add(amounts.output);
                total.money = total.money.saturating_add(amounts.money);
            }
        }
    }
    for plan in plans {
        let spent =
            plan.budgets(|scope, span| totals.get(&(*scope, span)).copied().unwrap_or_default());
        limits.spent(spent, now);
    }
    Ok(())
}

/// What answers the admin API's questions for a key's limits.
pub(super) fn now(gateway: &Arc<Gateway>) -> LimitsNow {
    let gateway = Arc::clone(gateway);
    Arc::new(move |row: &KeyRow, forget| {
        let gateway = Arc::clone(&gateway);
        let plan = plan_of(&gateway, row);
        Box::pin(async move {
            let plan = plan?;
            let now = gateway.clock.unix_us();
            if forget {
                gateway.limits.forget(&plan).await?;
            }
            let standing = gateway.limits.standing(&plan, now).await?;
            Some(standing.iter().map(shown).collect())
        })
    })
}

fn plan_of(gateway: &Gateway, row: &KeyRow) -> Option<Plan> {
    let (settings, keys) = (gateway.settings.load(), gateway.keys.load());
    let role = settings.roles.get(row.role.as_str())?;
    let project = row.project.as_deref().and_then(|name| keys.project(name));
    let policy = effective(role, project.map(|p| &p.own), Some(&row.own));
    let project = row.project.as_deref();
    Some(
        gateway
            .limits
            .plan(row.id.into(), &policy, project, None, &settings.node),
    )
}

fn shown((demand, standing): &(Demand, Standing)) -> LimitRow {
    LimitRow {
        holder: demand.scope.class.word().to_owned(),
        limit: demand.limit.to_string(),
        size: standing.limit,
        used: standing.limit.saturating_sub(standing.remaining),
        remaining: standing.remaining,
        resets_in_ms: u64::try_from(standing.reset.as_micros().div_ceil(1000)).unwrap_or(u64::MAX),
    }
}
