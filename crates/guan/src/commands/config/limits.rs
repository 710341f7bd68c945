//! How `guan config show` prints limits, caps and prices.

use std::fmt::Write;

use rules::limit::{Limit, Shape};
use rules::policy::{Caps, Pool, Role};

use super::{key, list, text};
use crate::config::{self, Config};

/// What a role says of limits beyond its first lines.
pub(super) fn render_role(out: &mut String, role: &Role) {
    if role.sliding {
        writeln!(out, "window = \"sliding\"").ok();
    }
    if let Some(burst) = role.burst {
        writeln!(out, "burst = {burst}").ok();
    }
    if role.refuse_long {
        writeln!(out, "on_cap = \"refuse\"").ok();
    }
    lists(out, &role.limits);
    let name = key(&role.name);
    caps(out, &role.caps, &format!("\n[roles.{name}.caps]\n"));
    pool(out, &role.shared, &format!("\n[roles.{name}.shared]\n"));
}

/// What a model says of them, within its table.
pub(super) fn render_model(out: &mut String, model: &gateway::settings::Model) {
    if let Some(n) = model.pool.concurrent_requests {
        writeln!(out, "concurrent_requests = {n}").ok();
    }
    lists(out, &model.pool.limits);
    let caps: Vec<String> = written(&model.caps)
        .map(|(name, n)| format!("{name} = {n}"))
        .collect();
    if !caps.is_empty() {
        writeln!(out, "caps = {{ {} }}", caps.join(", ")).ok();
    }
}

/// The tables of the whole node.
pub(super) fn render(out: &mut String, config: &Config) {
    let settings = &config.settings;
    config::render_shared(out, config.shared.as_ref());
    pool(out, &settings.node, "\n[limits.node]\n");
    if !config.prices.currency.is_empty() {
        let currency = text(&config.prices.currency);
        write!(out, "\n[prices]\ncurrency = {currency}\n").ok();
    }
    for (name, price) in &config.prices.models {
        let sum = |n: u64| text(&format!("{}.{:06}", n / 1_000_000, n % 1_000_000));
        let (input, output) = (sum(price.input), sum(price.output));
        let name = key(name);
        write!(
            out,
            "\n[prices.models.{name}]\ninput = {input}\noutput = {output}\n"
        )
        .ok();
    }
}

fn pool(out: &mut String, pool: &Pool, head: &str) {
    if *pool == Pool::default() {
        return;
    }
    out.push_str(head);
    if let Some(n) = pool.concurrent_requests {
        writeln!(out, "concurrent_requests = {n}").ok();
    }
    lists(out, &pool.limits);
}

fn lists(out: &mut String, limits: &[Limit]) {
    for (name, is_budget) in [("limits", false), ("budget", true)] {
        let of = limits
            .iter()
            .filter(|limit| (limit.shape == Shape::Calendar) == is_budget);
        let texts: Vec<String> = of.map(ToString::to_string).collect();
        if !texts.is_empty() {
            writeln!(out, "{name} = {}", list(texts.iter().map(String::as_str))).ok();
        }
    }
}

fn caps(out: &mut String, caps: &Caps, head: &str) {
    for (n, (name, cap)) in written(caps).enumerate() {
        if n == 0 {
            out.push_str(head);
        }
        writeln!(out, "{name} = {cap}").ok();
    }
}

fn written(caps: &Caps) -> impl Iterator<Item = (&'static str, u64)> {
    [
        ("prompts", caps.prompts),
        ("messages", caps.messages),
        ("tools", caps.tools),
        ("images", caps.images),
        ("logprobs", caps.logprobs),
        ("context", caps.context),
    ]
    .into_iter()
    .filter_map(|(name, cap)| Some((name, cap?)))
}
