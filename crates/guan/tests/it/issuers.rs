//! Tokens of identity providers on the running binary: good ones, forged ones, and issuers that come and go.
#![cfg(test)]

use serde_json::{Value, json};
use testkit::authority::Authority;
use testkit::client::Response;
use testkit::issuer::{Issuer, Manner, Signer, hmac_signed, now, unsigned};
use testkit::server::{Guan, in_front_of, write_file};
use testkit::upstream::Upstream;

use crate::field_cases::{CHAT, good};
use crate::guan;

const ALGORITHMS: [&str; 10] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
];

/// The config of one issuer whose `llm-users` are users.
fn trusting(issuer: &Issuer) -> String {
    format!(
        "\n[[issuers]]\nissuer = \"{}\"\naudience = [\"guan\"]\n\n[[issuers.map]]\nclaim = \"groups\"\nhas = \"llm-users\"\nrole = \"user\"\n",
        issuer.url()
    )
}

/// In front of an upstream, for callers who fail more often than most may.
fn patient(upstream: &Upstream) -> String {
    let patience = "[server]\nfailed_credentials_per_minute = 100000";
    in_front_of(&upstream.url()).replacen("[server]", patience, 1)
}

fn start(upstream: &Upstream, more: &str) -> Guan {
    Guan::start(guan(), &(patient(upstream) + more))
}

fn call(guan: &Guan, token: &str) -> Response {
    guan.client().with_key(token).chat(CHAT)
}

fn changed(claims: &Value, name: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    claims[name] = value;
    claims
}

fn message(response: &Response) -> String {
    response.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// The reasons of refused strangers so far, once the server has stopped and written them.
fn reasons(guan: &Guan) -> Vec<String> {
    let mut found: Vec<String> = guan
        .records()
        .iter()
        .filter(|record| record["event.action"] == "unauthenticated")
        .filter_map(|record| record["guan.act"]["reasons"].as_object())
        .flat_map(|reasons| reasons.keys().cloned())
        .collect();
    found.sort();
    found.dedup();
    found
}

#[test]
fn tokens_of_each_algorithm_are_callers_with_limits_of_their_own() {
    let signers: Vec<Signer> = ALGORITHMS
        .iter()
        .map(|name| Signer::new(name, name))
        .collect();
    let issuer = Issuer::start(&signers.iter().collect::<Vec<_>>());
    let upstream = Upstream::start(good);
    let all = format!("algorithms = {ALGORITHMS:?}\n\n[[issuers.map]]");
    let config = trusting(&issuer).replacen("\n[[issuers.map]]", &all, 1);
    let mut guan = start(&upstream, &config);
    for signer in &signers {
        let subject = format!("ana-{}", signer.jwk()["alg"].as_str().unwrap());
        let token = signer.sign(&issuer.claims(&subject));
        let client = guan.client();
        for header in ["Authorization: Bearer ", "x-api-key: ", "api-key: "] {
            let header = format!("{header}{token}\r\n");
            let response = client.send("POST", "/v1/chat/completions", &header, Some(CHAT));
            assert_eq!(
                response.status,
                200,
                "{subject} {header}: {}",
                response.text()
            );
        }
    }
    let calls = guan.wait_calls(30);
    let mut ids = std::collections::BTreeSet::new();
    for call in &calls {
        assert_eq!(call["user.roles"], "user");
        assert_eq!(call["guan.identity"]["issuer"], issuer.url());
        let subject = call["guan.identity"]["subject"].as_str().unwrap();
        assert!(subject.starts_with("ana-"));
        ids.insert((
            subject.to_owned(),
            call["user.id"].as_str().unwrap().to_owned(),
        ));
    }
    assert_eq!(ids.len(), 10, "one id a subject: {ids:?}");

    // The role's ten calls a minute are each subject's own, whatever header and token he uses.
    let [one, other] = ["eva", "eve"].map(|subject| signers[6].sign(&issuer.claims(subject)));
    let again = signers[0].sign(&issuer.claims("eva"));
    for n in 0..10 {
        let token = if n % 2 == 0 { &one } else { &again };
        assert_eq!(call(&guan, token).status, 200, "{n}");
    }
    assert_eq!(call(&guan, &one).status, 429);
    assert_eq!(call(&guan, &again).status, 429);
    assert_eq!(call(&guan, &other).status, 200);
    assert_eq!(
        issuer.fetches(),
        1,
        "keys are fetched once, not at each call"
    );

    // After a restart the ten calls still count.
    assert_eq!(guan.stop(), Some(0));
    guan.serve();
    assert_eq!(call(&guan, &one).status, 429);
    assert_eq!(call(&guan, &other).status, 200);
}

/// Every way to forge a token that has a name; `other` is an issuer that nobody here trusts.
fn forged(rsa: &Signer, ec: &Signer, issuer: &Issuer, other: &Issuer) -> Vec<String> {
    let claims = issuer.claims("ana");
    let head = |alg: &str, kid: &str| json!({ "alg": alg, "kid": kid });
    let thief = Signer::new("RS256", "rsa");
    let mut led = head("RS256", "mine");
    led["jwk"] = thief.jwk();
    led["jku"] = format!("{}/keys", other.url()).into();
    let good_token = rsa.sign(&claims);
    let (signed, signature) = good_token.rsplit_once('.').unwrap();
    let (_, body) = signed.split_once('.').unwrap();
    let ec_token = ec.sign(&claims);
    let with = |name: &str, value: Value| rsa.sign(&changed(&claims, name, value));
    let headed = |more: Value| {
        let mut head = head("RS256", "rsa");
        for (name, value) in more.as_object().unwrap() {
            head[name] = value.clone();
        }
        rsa.sign_with(&head, &claims.to_string())
    };
    let twice = claims.to_string().replacen('{', "{\"sub\":\"eva\",", 1);
    let modulus = rsa.jwk()["n"].as_str().unwrap().to_owned();
    vec![
        unsigned(&head("none", "rsa"), &claims, b""),
        unsigned(&head("none", "rsa"), &claims, b"x"),
        unsigned(&head("nOnE", "rsa"), &claims, b"x"),
        hmac_signed(&head("HS256", "rsa"), &claims, &rsa.public_bytes()),
        hmac_signed(&head("HS256", "rsa"), &claims, modulus.as_bytes()),
        thief.sign(&claims),
        thief.sign_with(&led, &claims.to_string()),
        rsa.sign_with(&head("RS256", "ec"), &claims.to_string()),
        format!("{}.{signature}", ec_token.rsplit_once('.').unwrap().0),
        format!("{signed}.AAAA"),
        format!("{}.{body}.{signature}", ec_token.split_once('.').unwrap().0),
        with("aud", "other".into()),
        with("iss", other.url().into()),
        with("iss", format!("{}/", issuer.url()).into()),
        with("nbf", (now() + 600).into()),
        with("iat", (now() + 600).into()),
        with("exp", Value::Null),
        with("sub", Value::Null),
        with("cnf", json!({ "jkt": "x" })),
        headed(json!({ "crit": ["b64"], "b64": false })),
        headed(json!({ "typ": "logout+jwt" })),
        rsa.sign_with(&head("RS256", "rsa"), &twice),
    ]
}

#[test]
fn no_forged_token_gets_in_and_all_are_told_the_same() {
    let (rsa, ec) = (Signer::new("RS256", "rsa"), Signer::new("ES256", "ec"));
    let (issuer, other) = (Issuer::start(&[&rsa, &ec]), Issuer::start(&[&rsa]));
    let upstream = Upstream::start(good);
    let mut guan = start(&upstream, &trusting(&issuer));
    let mut said = std::collections::BTreeSet::new();
    for (n, token) in forged(&rsa, &ec, &issuer, &other).iter().enumerate() {
        let response = call(&guan, token);
        assert_eq!(response.status, 401, "{n}: {token}");
        assert_eq!(response.error().0, "invalid_api_key");
        assert_eq!(response.headers["www-authenticate"], "Bearer");
        // Without a signature it isn't even the form of a token.
        if token.split('.').all(|part| !part.is_empty()) {
            said.insert(message(&response));
        }
    }
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(upstream.received().is_empty());
    assert_eq!(other.fetches(), 0, "no token leads to its own keys");
    assert_eq!(guan.stop(), Some(0));
    let reasons = reasons(&guan);
    for word in [
        "token-algorithm",
        "token-signature",
        "token-unknown-key",
        "token-audience",
        "token-unknown-issuer",
        "token-not-yet-valid",
        "token-claims",
        "token-bound",
        "token-malformed",
    ] {
        assert!(
            reasons.iter().any(|reason| reason == word),
            "{word}: {reasons:?}"
        );
    }
}

#[test]
fn a_token_opens_what_a_key_does_in_its_time_with_a_role_and_up_to_its_length() {
    let (rsa, ec) = (Signer::new("RS256", "rsa"), Signer::new("ES256", "ec"));
    let issuer = Issuer::start(&[&rsa, &ec]);
    let upstream = Upstream::start(good);
    let mut guan = start(&upstream, &trusting(&issuer));
    let claims = issuer.claims("ana");
    let with = |name: &str, value: Value| rsa.sign(&changed(&claims, name, value));
    let late = call(&guan, &with("exp", (now() - 61).into()));
    assert!(late.status == 401 && message(&late).contains("expired"));
    let nobody = call(&guan, &with("groups", json!(["staff"])));
    assert_eq!(nobody.status, 403);
    assert_eq!(nobody.error().0, "not_admitted");
    assert_eq!(call(&guan, &with("x", "x".repeat(9000).into())).status, 401);
    assert_eq!(call(&guan, &with("x", "x".repeat(5000).into())).status, 200);

    // A29: a token opens no path that a key doesn't, and without one every path is closed.
    let token = rsa.sign(&claims);
    let bad = rsa.sign(&changed(&claims, "aud", "other".into()));
    for path in [
        "/v1/models",
        "/x",
        "/admin/v1/keys",
        "/.well-known/openid-configuration",
    ] {
        for method in ["GET", "POST", "OPTIONS", "FOO"] {
            let status = |client: testkit::client::Client| {
                client.raw(client.request(method, path, "", None)).status
            };
            assert_eq!(status(guan.client()), 401, "{method} {path}");
            assert_eq!(status(guan.client().with_key(&bad)), 401, "{method} {path}");
        }
    }
    let known = guan.client().with_key(&token);
    assert_eq!(known.get("/v1/models").status, 200);
    assert_eq!(known.get("/admin/v1/keys").status, 404);

    // Two credentials that differ are refused, whatever they are.
    let both = format!("x-api-key: {token}\r\n");
    let client = guan.client().with_key(&ec.sign(&claims));
    assert_eq!(client.send("GET", "/v1/models", &both, None).status, 401);
    assert_eq!(guan.stop(), Some(0));
    let reasons = reasons(&guan);
    for word in ["expired-token", "no-role", "malformed-credential"] {
        assert!(
            reasons.iter().any(|reason| reason == word),
            "{word}: {reasons:?}"
        );
    }
}

#[test]
fn a_rotated_key_is_picked_up_and_a_flood_of_unknown_ones_shares_few_looks() {
    let (old, new) = (Signer::new("ES256", "old"), Signer::new("EdDSA", "new"));
    let issuer = Issuer::start(&[&old]);
    let upstream = Upstream::start(good);
    let guan = start(&upstream, &trusting(&issuer));
    let roles = |signer: &Signer, subject: &str| signer.sign(&issuer.claims(subject));
    assert_eq!(call(&guan, &roles(&old, "a")).status, 200);
    issuer.publish(&[&old, &new]);
    assert_eq!(call(&guan, &roles(&new, "b")).status, 200);
    assert_eq!(call(&guan, &roles(&old, "a")).status, 200);
    assert_eq!(issuer.fetches(), 2);
    let strangers: Vec<Signer> = (0..20)
        .map(|n| Signer::new("EdDSA", &format!("stranger-{n}")))
        .collect();
    let client = guan.client();
    std::thread::scope(|scope| {
        for stranger in &strangers {
            let (client, roles) = (&client, &roles);
            scope.spawn(move || {
                for n in 0..2 {
                    let token = roles(stranger, &n.to_string());
                    assert_eq!(client.with_key(&token).chat(CHAT).status, 401);
                }
            });
        }
    });
    assert!(issuer.fetches() <= 5, "{}", issuer.fetches());
    assert_eq!(call(&guan, &roles(&new, "b")).status, 200);
}

#[test]
fn a_key_that_is_withdrawn_takes_its_verified_tokens_along() {
    let (old, new) = (Signer::new("ES256", "old"), Signer::new("ES256", "new"));
    let issuer = Issuer::start(&[&old]);
    let upstream = Upstream::start(good);
    let guan = start(&upstream, &trusting(&issuer));
    let stolen = old.sign(&issuer.claims("a"));
    assert_eq!(call(&guan, &stolen).status, 200);
    issuer.publish(&[&new]);
    // The first token of the new key brings the new set; what was verified by the old one counts no longer.
    assert_eq!(call(&guan, &new.sign(&issuer.claims("b"))).status, 200);
    assert_eq!(call(&guan, &stolen).status, 401);
}

#[test]
fn an_issuer_that_is_away_at_the_start_makes_its_tokens_503_and_nothing_else() {
    let signer = Signer::new("ES256", "k");
    let (away, here) = (Issuer::start(&[&signer]), Issuer::start(&[&signer]));
    away.behave(Manner::Away);
    let upstream = Upstream::start(good);
    let mut guan = start(&upstream, &(trusting(&away) + &trusting(&here)));
    let token = signer.sign(&away.claims("ana"));
    let response = call(&guan, &token);
    assert_eq!(response.status, 503, "{}", response.text());
    assert!(response.headers.contains_key("retry-after"));
    assert_eq!(call(&guan, &signer.sign(&here.claims("ana"))).status, 200);
    assert_eq!(guan.admin().chat(CHAT).status, 200);
    assert_eq!(call(&guan, "sk-foreign").status, 401);
    guan.wait_log("can't be fetched");
    away.behave(Manner::Good);
    guan.until("the issuer is heard again", |guan| {
        call(guan, &token).status == 200
    });

    // Away later: what is known stays in use, a new key can't be judged.
    away.behave(Manner::Away);
    assert_eq!(call(&guan, &token).status, 200);
    assert_eq!(call(&guan, &signer.sign(&away.claims("eva"))).status, 200);
    let new = Signer::new("ES256", "new");
    let response = call(&guan, &new.sign(&away.claims("ana")));
    assert!([401, 503].contains(&response.status));
}

#[test]
fn issuers_that_lie_or_talk_too_much_let_nobody_in() {
    let signer = Signer::new("ES256", "k");
    let manners = [
        Manner::Lying,
        Manner::Oversized,
        Manner::Redirecting,
        Manner::Instead("{\"keys\":[]}".to_owned()),
    ];
    let issuers: Vec<Issuer> = manners
        .iter()
        .map(|manner| {
            let issuer = Issuer::start(&[&signer]);
            issuer.behave(manner.clone());
            issuer
        })
        .collect();
    let upstream = Upstream::start(good);
    let config: String = issuers.iter().map(trusting).collect();
    let guan = start(&upstream, &config);
    for (issuer, manner) in issuers.iter().zip(&manners) {
        let token = signer.sign(&issuer.claims("ana"));
        assert_eq!(call(&guan, &token).status, 503, "{manner:?}");
        assert_eq!(issuer.asked("/elsewhere"), 0);
    }
    assert!(upstream.received().is_empty());
}

#[test]
fn keys_that_are_too_old_are_503_and_a_reload_takes_issuers_and_rules_over() {
    let signer = Signer::new("ES256", "k");
    let issuer = Issuer::start(&[&signer]);
    let upstream = Upstream::start(good);
    let stale = "jwks_max_stale = \"10s\"\n\n[[issuers.map]]";
    let config = trusting(&issuer).replacen("\n[[issuers.map]]", stale, 1);
    let mut guan = start(&upstream, &config);
    let token = signer.sign(&issuer.claims("ana"));
    assert_eq!(call(&guan, &token).status, 200);
    issuer.behave(Manner::Away);
    guan.until("its keys are too old", |guan| {
        let status = guan.client().with_key(&token).get("/v1/models").status;
        assert!([200, 503].contains(&status), "{status}");
        status == 503
    });
    issuer.behave(Manner::Good);
    // The rules change: other claims, another role; then the issuer goes.
    let file = guan.data().join("guan.toml");
    let base = patient(&upstream);
    let other = trusting(&issuer)
        .replace("llm-users", "staff")
        .replace("\"user\"", "\"admin\"");
    write_file(&file, &format!("{base}{other}"));
    guan.until("its keys are fetched again", |guan| {
        call(guan, &token).status == 200
    });
    guan.until("the new rule holds", |guan| {
        guan.calls().last().unwrap()["user.roles"] == "admin" || call(guan, &token).status > 500
    });
    write_file(&file, &base);
    guan.until("the issuer is gone", |guan| {
        call(guan, &token).status == 401
    });
    assert_eq!(guan.admin().chat(CHAT).status, 200);
}

#[test]
fn projects_narrow_tokens_too_and_a_project_that_is_not_there_admits_nobody() {
    let signer = Signer::new("ES256", "k");
    let issuer = Issuer::start(&[&signer]);
    let upstream = Upstream::start(good);
    let claim = "project_claim = \"team\"\n\n[[issuers.map]]";
    let config = trusting(&issuer).replacen("\n[[issuers.map]]", claim, 1);
    let mut guan = start(&upstream, &config);
    let token = |team: &str| signer.sign(&changed(&issuer.claims("ana"), "team", team.into()));
    assert_eq!(call(&guan, &token("red")).status, 403);
    let made = guan.run(&["project", "create", "red", "--requests-per-minute", "2"]);
    assert!(made.status.success(), "{made:?}");
    for status in [200, 200, 429] {
        assert_eq!(call(&guan, &token("red")).status, status);
    }
    assert_eq!(call(&guan, &token("blue")).status, 403);
    assert_eq!(call(&guan, &signer.sign(&issuer.claims("ana"))).status, 403);
    assert!(guan.run(&["project", "disable", "red"]).status.success());
    assert_eq!(call(&guan, &token("red")).status, 403);
    guan.until("its usage is counted", |guan| {
        let done = guan.run(&["usage", "--by", "project", "--json"]);
        let rows: Value = serde_json::from_slice(&done.stdout).unwrap();
        rows[0]["of"] == "red" && rows[0]["calls"] == 3
    });
}

#[test]
fn a_foreign_key_in_the_form_of_a_token_goes_on_working_once_it_is_imported() {
    use std::io::Write;
    let signer = Signer::new("ES256", "k");
    let (issuer, foreign) = (Issuer::start(&[&signer]), Issuer::start(&[&signer]));
    let upstream = Upstream::start(good);
    let guan = start(&upstream, &trusting(&issuer));
    // One that looks like a token, one that is a token of somebody else, one of our own issuer that is too old.
    let old = changed(&issuer.claims("ana"), "exp", (now() - 600).into());
    let keys = [
        "abc.def.ghi".to_owned(),
        signer.sign(&foreign.claims("ana")),
        signer.sign(&old),
    ];
    for key in &keys {
        assert_eq!(call(&guan, key).status, 401);
    }
    let mut child = guan
        .command(&[
            "key", "import", "--plain", "-", "--name", "foreign", "--role", "user",
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(keys.join("\n").as_bytes()).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success());
    for key in &keys {
        assert_eq!(call(&guan, key).status, 200);
    }
}

#[test]
fn a35_no_token_stands_in_a_log_a_record_an_error_or_the_store() {
    let signer = Signer::new("RS256", "k");
    let issuer = Issuer::start(&[&signer]);
    let upstream = Upstream::start(|request, answer| {
        // It echoes all that it was sent.
        let sent = request.header("authorization").join(",");
        answer.json(
            500,
            &json!({ "error": { "message": format!("sent {sent}"), "type": "x" } }).to_string(),
        );
    });
    let config = patient(&upstream) + &trusting(&issuer);
    let mut guan = Guan::start_logging(guan(), &config, "trace");
    let claims = issuer.claims("ana");
    let tokens = [
        signer.sign(&claims),
        signer.sign(&changed(&claims, "exp", (now() - 600).into())),
        signer.sign(&changed(&claims, "aud", "other".into())),
        Signer::new("RS256", "k").sign(&claims),
        Signer::new("RS256", "new").sign(&claims),
        unsigned(&json!({ "alg": "none" }), &claims, b"x"),
    ];
    let mut answers = String::new();
    for token in &tokens {
        for path in [
            "/v1/chat/completions".to_owned(),
            format!("/v1/models?api_key={token}"),
        ] {
            let response = guan
                .client()
                .with_key(token)
                .send("POST", &path, "", Some(CHAT));
            answers.push_str(&response.text());
            answers.push_str(&format!("{:?}", response.headers));
        }
        let response = guan.client().get(&format!("/v1/{token}"));
        answers.push_str(&response.text());
    }
    assert_eq!(guan.stop(), Some(0));
    let log = guan.log_text();
    for token in &tokens {
        let signature = token.rsplit_once('.').unwrap().1;
        for secret in [token.as_str(), signature] {
            if secret.len() > 8 {
                assert!(!answers.contains(secret), "{answers}");
                assert!(!log.contains(secret), "{log}");
                assert!(!crate::secrets::is_below(guan.data(), secret));
            }
        }
    }
}

#[test]
fn an_issuer_over_tls_is_believed_by_its_authority_alone() {
    let (authority, stranger) = (Authority::new("company"), Authority::new("company"));
    let signer = Signer::new("ES256", "k");
    let issuer = Issuer::start_tls(&[&signer], authority.server_config());
    let upstream = Upstream::start(good);
    let ca = "ca = \"issuer.pem\"\n\n[[issuers.map]]";
    let config = patient(&upstream) + &trusting(&issuer).replacen("\n[[issuers.map]]", ca, 1);
    let token = signer.sign(&issuer.claims("ana"));
    for (trusted, status) in [(&authority, 200), (&stranger, 503)] {
        let guan = Guan::start_with(guan(), &config, |data| {
            write_file(&data.join("issuer.pem"), &trusted.pem());
        });
        let response = call(&guan, &token);
        assert_eq!(response.status, status, "{}", response.text());
    }
    assert_eq!(
        issuer.asked("/realms/company/.well-known/openid-configuration"),
        1
    );
}
