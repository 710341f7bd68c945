//! Client certificates on the running binary: whose are good, what their names give, and what a key beside them means.
#![cfg(test)]

use std::path::Path;

use testkit::authority::Authority;
use testkit::client::Client;
use testkit::issuer::{Issuer, Signer, now};
use testkit::server::{Guan, in_front_of, write_file};
use testkit::upstream::Upstream;

use crate::field_cases::{CHAT, good};
use crate::guan;

const RULES: &str = "
[[client_certificates]]
san = \"uri:spiffe://cluster/ns/llm\"
role = \"admin\"
[[client_certificates]]
san = \"dns:*.apps.example\"
role = \"user\"
[[client_certificates]]
san = \"email:bot@example.com\"
role = \"user\"
project = \"red\"
";

fn config(upstream: &Upstream, auth: &str) -> String {
    let tls = format!("\n[tls]\nclient_ca = \"clients.pem\"\nclient_auth = \"{auth}\"\n");
    in_front_of(&upstream.url()) + &tls + RULES
}

fn with_authority(authority: &Authority) -> impl FnOnce(&Path) + '_ {
    |data| write_file(&data.join("clients.pem"), &authority.pem())
}

/// Whether a client gets through the handshake: under TLS 1.3 the server's word comes with the first answer.
fn is_let_in(client: &Client) -> bool {
    let Ok(mut connection) = client.connect() else {
        return false;
    };
    connection.try_write(client.request("GET", "/livez", "", None)) && !connection.rest().is_empty()
}

#[test]
fn a_name_in_a_certificate_gives_a_role_and_limits_of_its_own() {
    let (authority, upstream) = (Authority::new("clients"), Upstream::start(good));
    let mut guan = Guan::start_with(
        guan(),
        &config(&upstream, "optional"),
        with_authority(&authority),
    );
    let spiffe =
        guan.certified(&authority.client(&["dns:x.apps.example", "uri:spiffe://cluster/ns/llm"]));
    let (one, again) = (["dns:One.apps.example"], ["dns:one.apps.example"]);
    let app = guan.certified(&authority.client(&one));
    assert_eq!(spiffe.chat(CHAT).status, 200);
    assert_eq!(app.chat(CHAT).status, 200);
    let calls = guan.wait_calls(2);
    assert_eq!(calls[0]["user.roles"], "admin");
    assert_eq!(
        calls[0]["guan.identity"]["certificate"],
        "uri:spiffe://cluster/ns/llm"
    );
    assert_eq!(calls[1]["user.roles"], "user");
    assert_eq!(
        calls[1]["guan.identity"]["certificate"],
        "dns:one.apps.example"
    );
    let fingerprint = calls[1]["guan.identity"]["fingerprint"].as_str().unwrap();
    assert_eq!(fingerprint.len(), 64);

    // Another certificate of the same name is the same caller; another name has its own ten calls.
    let app = guan.certified(&authority.client(&again));
    for n in 0..9 {
        assert_eq!(app.chat(CHAT).status, 200, "{n}");
    }
    assert_eq!(app.chat(CHAT).status, 429);
    let other = guan.certified(&authority.client(&["dns:two.apps.example"]));
    assert_eq!(other.chat(CHAT).status, 200);

    // No rule, or a project that isn't there.
    for names in [
        &["dns:a.b.apps.example"][..],
        &["dns:uri:spiffe://cluster/ns/llm"],
        &["dns:*.apps.example"],
        &[],
    ] {
        let response = guan.certified(&authority.client(names)).chat(CHAT);
        assert_eq!(response.status, 403, "{names:?}: {}", response.text());
        assert_eq!(response.error().0, "not_admitted");
    }
    let bot = guan.certified(&authority.client(&["email:bot@Example.com"]));
    assert_eq!(bot.chat(CHAT).status, 403);
    assert!(guan.run(&["project", "create", "red"]).status.success());
    assert_eq!(bot.chat(CHAT).status, 200);

    // A29: without a certificate and without a key nothing is open that wasn't before.
    assert_eq!(guan.client().chat(CHAT).status, 401);
    assert_eq!(guan.client().get("/v1/models").status, 401);
    assert_eq!(guan.client().get("/livez").status, 200);
}

#[test]
fn only_certificates_of_the_authority_in_their_time_and_for_clients_get_through() {
    let (authority, upstream) = (Authority::new("clients"), Upstream::start(good));
    let names = ["uri:spiffe://cluster/ns/llm"];
    for word in ["optional", "required"] {
        let guan = Guan::start_for(
            guan(),
            &config(&upstream, word),
            authority.client(&["dns:probe.apps.example"]),
            with_authority(&authority),
        );
        assert!(is_let_in(&guan.certified(&authority.client(&names))));
        // The same name, and the authority's too.
        let thief = Authority::new("clients");
        for (n, bad) in [
            thief.client(&names),
            authority.client_for(&names, now() - 7200, now() - 3600),
            authority.client_for(&names, now() + 3600, now() + 7200),
            authority.server(&names),
        ]
        .iter()
        .enumerate()
        {
            assert!(!is_let_in(&guan.certified(bad)), "{word} {n}");
        }
        assert_eq!(is_let_in(&guan.client()), word == "optional");
    }
    assert!(upstream.received().is_empty());
}

#[test]
fn a_key_or_a_token_beside_a_certificate_decides_alone() {
    let (authority, upstream) = (Authority::new("clients"), Upstream::start(good));
    let signer = Signer::new("ES256", "k");
    let issuer = Issuer::start(&[&signer]);
    let more = format!(
        "\n[[issuers]]\nissuer = \"{}\"\naudience = [\"guan\"]\n[[issuers.map]]\nrole = \"user\"\n",
        issuer.url()
    );
    let config = config(&upstream, "optional") + &more;
    let mut guan = Guan::start_with(guan(), &config, with_authority(&authority));
    let certified = guan.certified(&authority.client(&["uri:spiffe://cluster/ns/llm"]));
    let key = guan.key("user");
    assert_eq!(certified.with_key(&key).chat(CHAT).status, 200);
    assert_eq!(
        certified
            .with_key(&signer.sign(&issuer.claims("ana")))
            .chat(CHAT)
            .status,
        200
    );
    assert_eq!(certified.with_key("sk-wrong").chat(CHAT).status, 401);
    let revoked = guan.run(&["key", "revoke", key.get(8..20).unwrap()]);
    assert!(revoked.status.success(), "{revoked:?}");
    assert_eq!(certified.with_key(&key).chat(CHAT).status, 401);
    assert_eq!(certified.chat(CHAT).status, 200);
    // No rule names this one, and its key is good.
    let unnamed = guan.certified(&authority.client(&["dns:nobody.example"]));
    assert_eq!(unnamed.with_key(&guan.key("user")).chat(CHAT).status, 200);
    let calls = guan.wait_calls(4);
    assert_eq!(calls[0]["user.roles"], "user");
    assert!(calls[0].get("guan.identity").is_none());
    assert_eq!(calls[1]["guan.identity"]["subject"], "ana");
    assert_eq!(
        calls[2]["guan.identity"]["certificate"],
        "uri:spiffe://cluster/ns/llm"
    );
}

#[test]
fn a_connection_does_not_outlive_its_certificate() {
    let (authority, upstream) = (Authority::new("clients"), Upstream::start(good));
    let mut guan = Guan::start_with(
        guan(),
        &config(&upstream, "optional"),
        with_authority(&authority),
    );
    let end = now() + 3;
    let short = authority.client_for(&["uri:spiffe://cluster/ns/llm"], now() - 60, end);
    let client = guan.certified(&short);
    let mut kept = client.connect().unwrap();
    let mut ask = || {
        kept.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n");
        kept.response().status
    };
    assert_eq!(ask(), 200);
    guan.until("the certificate has ended", |_guan| now() > end);
    assert_eq!(ask(), 401);
    // A new connection of the same client would resume the session: nothing of it gets through.
    let resumed = client.connect().is_ok_and(|mut connection| {
        connection.try_write(client.request("GET", "/v1/models", "", None))
            && connection.rest().starts_with(b"HTTP/1.1 200")
    });
    assert!(!resumed);
}

#[test]
fn rules_change_at_a_reload_and_authorities_at_a_restart() {
    let (authority, other, upstream) = (
        Authority::new("a"),
        Authority::new("b"),
        Upstream::start(good),
    );
    let base = config(&upstream, "optional");
    let mut guan = Guan::start_with(guan(), &base, with_authority(&authority));
    let client = guan.certified(&authority.client(&["dns:one.apps.example"]));
    assert_eq!(client.chat(CHAT).status, 200);
    let file = guan.data().join("guan.toml");
    write_file(&file, &base.replace("*.apps.example", "*.other.example"));
    guan.until("the rule is gone", |_guan| {
        client.get("/v1/models").status == 403
    });
    write_file(&file, &base.replace("clients.pem", "others.pem"));
    guan.wait_log("isn't there");
    write_file(&guan.data().join("others.pem"), &other.pem());
    write_file(&file, &(base.replace("clients.pem", "others.pem") + "\n"));
    guan.wait_log("client_ca or client_auth has changed");
    assert_eq!(client.get("/v1/models").status, 403);
    assert_eq!(guan.stop(), Some(0));
    guan.serve();
    let client = guan.certified(&other.client(&["dns:one.apps.example"]));
    assert_eq!(client.chat(CHAT).status, 200);
    assert!(!is_let_in(
        &guan.certified(&authority.client(&["dns:one.apps.example"]))
    ));
}
