//! Tokens, keys and claims: the published examples, and every way to forge one that has a name.

use serde_json::json;
use testkit::issuer::{Signer, hmac_signed, unsigned};

use super::key_set::KeySetFault;
use super::*;
use crate::refusal::Unadmitted;

const NOW: i64 = 1_800_000_000;

fn issuer() -> Issuer {
    Issuer {
        url: "https://issuer.example".into(),
        audience: vec!["guan".into(), "guan-too".into()],
        algorithms: Algorithm::DEFAULT.to_vec(),
        subject_claim: "sub".into(),
        project_claim: None,
        leeway: 60,
        max_age: None,
        keys_max_stale: 0,
        map: vec![rule(Some(("groups", "llm-users")), "user")],
    }
}

fn rule(when: Option<(&str, &str)>, role: &str) -> Rule {
    Rule {
        when: when.map(|(claim, has)| (claim.to_owned(), has.to_owned())),
        role: role.into(),
        project: None,
    }
}

fn claims() -> Value {
    json!({ "iss": "https://issuer.example", "aud": "guan", "sub": "ana", "iat": NOW, "exp": NOW + 600,
            "groups": ["staff", "llm-users"] })
}

fn with(more: &Value) -> Value {
    let mut all = claims();
    for (name, value) in more.as_object().unwrap() {
        if value.is_null() {
            all.as_object_mut().unwrap().remove(name);
        } else {
            all[name] = value.clone();
        }
    }
    all
}

fn set(signers: &[&Signer]) -> KeySet {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    KeySet::read(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

fn check(text: &str, issuer: &Issuer, keys: &KeySet) -> Result<Admitted, Refusal> {
    let token = Token::read(text).unwrap().map_err(Refusal::BadToken)?;
    token.verify(issuer, keys).map_err(Refusal::BadToken)?;
    token.admit(issuer, NOW)
}

fn word(text: &str, issuer: &Issuer, keys: &KeySet) -> &'static str {
    check(text, issuer, keys).unwrap_err().word()
}

#[test]
fn every_algorithm_signs_and_one_letter_more_or_less_is_forged() {
    let all: Vec<Signer> = Algorithm::ALL
        .iter()
        .map(|algorithm| Signer::new(algorithm.name(), algorithm.name()))
        .collect();
    let keys = set(&all.iter().collect::<Vec<_>>());
    let open = Issuer {
        algorithms: Algorithm::ALL.to_vec(),
        ..issuer()
    };
    for signer in &all {
        let token = signer.sign(&claims());
        let admitted = check(&token, &open, &keys).unwrap();
        assert_eq!((&*admitted.subject, &*admitted.role), ("ana", "user"));
        assert_eq!(admitted.until, NOW + 660);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        for forged in [
            format!("{}.{signature}", signed.replace('.', ".e")),
            format!("{signed}.{}", signature.get(4..).unwrap()),
            format!(
                "{signed}.{}A{}",
                signature.get(..1).unwrap(),
                signature.get(2..).unwrap()
            ),
            format!("{signed}.AAAA"),
        ] {
            if forged != token {
                let word = word(&forged, &open, &keys);
                assert!(
                    ["token-signature", "token-malformed"].contains(&word),
                    "{word}"
                );
            }
        }
    }
}

#[test]
fn the_published_examples_verify() {
    // RFC 7515 appendix A.3 and RFC 8037 appendix A.4.
    let keys = KeySet::read(
        br#"{"keys":[
            {"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
            {"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#,
    )
    .unwrap();
    for (algorithm, text) in [
        (
            Algorithm::Es256,
            "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
        (
            Algorithm::EdDsa,
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
    ] {
        let (signed, signature) = text.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let verified = |message: &[u8]| keys.verify(algorithm, None, message, &signature);
        assert_eq!(verified(signed.as_bytes()), Ok(()));
        assert_eq!(verified(b"another"), Err(Untrusted::UnknownKey));
    }
}

#[test]
fn the_token_never_chooses_how_it_is_judged() {
    let (rsa, ec) = (Signer::new("RS256", "rsa"), Signer::new("ES256", "ec"));
    let (keys, issuer) = (set(&[&rsa, &ec]), issuer());
    let head = |alg: &str, kid: &str| json!({ "alg": alg, "kid": kid });
    for alg in [
        "none", "None", "NONE", "", "HS256", "HS384", "HS512", "RS256 ", "rs256", "RS1",
    ] {
        let token = unsigned(&head(alg, "rsa"), &claims(), &[1; 32]);
        assert_eq!(word(&token, &issuer, &keys), "token-algorithm", "{alg}");
    }
    let hmac = hmac_signed(&head("HS256", "rsa"), &claims(), &rsa.public_bytes());
    assert_eq!(word(&hmac, &issuer, &keys), "token-algorithm");
    // Not on this issuer's list, though its key could.
    assert_eq!(
        word(
            &rsa.sign_with(&head("RS512", "rsa"), &claims().to_string()),
            &issuer,
            &keys
        ),
        "token-algorithm"
    );
    // A key of another type under the name, and one that its issuer keeps for another algorithm.
    assert_eq!(
        word(
            &rsa.sign_with(&head("RS256", "ec"), &claims().to_string()),
            &issuer,
            &keys
        ),
        "token-algorithm"
    );
    assert_eq!(
        word(
            &rsa.sign_with(&head("PS256", "rsa"), &claims().to_string()),
            &issuer,
            &keys
        ),
        "token-algorithm"
    );
    let other = Signer::new("RS256", "rsa");
    assert_eq!(
        word(&other.sign(&claims()), &issuer, &keys),
        "token-signature"
    );
    let new = Signer::new("RS256", "new");
    assert_eq!(
        word(&new.sign(&claims()), &issuer, &keys),
        "token-unknown-key"
    );
    // The way to a key that a token brings along is never gone.
    let mut leading = head("RS256", "new");
    leading["jwk"] = new.jwk();
    leading["jku"] = "https://attacker.example/keys".into();
    leading["x5u"] = "https://attacker.example/chain".into();
    let leading = new.sign_with(&leading, &claims().to_string());
    assert_eq!(word(&leading, &issuer, &keys), "token-unknown-key");
    // Without a name each fitting key is tried.
    let nameless = ec.sign_with(&json!({ "alg": "ES256" }), &claims().to_string());
    assert!(check(&nameless, &issuer, &keys).is_ok());
    let nameless = new.sign_with(&json!({ "alg": "RS256" }), &claims().to_string());
    assert_eq!(word(&nameless, &issuer, &keys), "token-unknown-key");
}

#[test]
fn heads_and_claims_that_two_readers_could_read_in_two_ways_are_refused() {
    let ec = Signer::new("ES256", "ec");
    let (keys, issuer) = (set(&[&ec]), issuer());
    let good = claims().to_string();
    let head = |more: &Value| {
        let mut head = json!({ "alg": "ES256", "kid": "ec" });
        for (name, value) in more.as_object().unwrap() {
            head[name] = value.clone();
        }
        head
    };
    for bad in [
        json!({ "crit": ["exp"] }),
        json!({ "crit": [] }),
        json!({ "typ": "logout+jwt" }),
        json!({ "typ": "dpop+jwt" }),
        json!({ "typ": 1 }),
        json!({ "kid": 7 }),
    ] {
        let token = ec.sign_with(&head(&bad), &good);
        assert_eq!(word(&token, &issuer, &keys), "token-malformed", "{bad}");
    }
    for fine in [
        json!({ "typ": "at+JWT" }),
        json!({ "typ": "application/jwt" }),
    ] {
        assert!(
            check(&ec.sign_with(&head(&fine), &good), &issuer, &keys).is_ok(),
            "{fine}"
        );
    }
    let twice = good.replacen('{', r#"{"sub":"eva","#, 1);
    let token = ec.sign_with(&head(&json!({})), &twice);
    assert_eq!(word(&token, &issuer, &keys), "token-malformed");
    let token = ec.sign_with(&head(&json!({})), "[1]");
    assert_eq!(word(&token, &issuer, &keys), "token-malformed");
}

#[test]
fn what_is_no_token_is_left_to_the_keys() {
    for text in [
        "a.b.c",
        "sk-foreign.key.1",
        "eyJhbGciOiJFUzI1NiJ9.e30",
        "a.b.c.d",
        "..",
        "a..c",
    ] {
        assert!(Token::read(text).is_none(), "{text}");
    }
    assert!(has_form("a.b-_.c") && !has_form("a.b+.c") && !has_form("a.b=.c") && !has_form("abc"));
    let long = Signer::new("EdDSA", "k").sign(&with(&json!({ "x": "x".repeat(LONGEST) })));
    assert!(Token::read(&long).is_none());
    let token = Signer::new("EdDSA", "k").sign(&claims());
    assert_eq!(format!("{:?}", Token::read(&token)), "Some(Ok(Token(…)))");
}

#[test]
fn a_token_is_for_us_in_its_time_and_names_its_subject() {
    let ed = Signer::new("EdDSA", "k");
    let (keys, issuer) = (set(&[&ed]), issuer());
    let word = |more: &Value| check(&ed.sign(&with(more)), &issuer, &keys).map_err(|r| r.word());
    for (more, why) in [
        (
            json!({ "iss": "https://issuer.example/" }),
            "token-unknown-issuer",
        ),
        (json!({ "iss": null }), "token-unknown-issuer"),
        (json!({ "aud": "other" }), "token-audience"),
        (json!({ "aud": null }), "token-audience"),
        (json!({ "aud": [] }), "token-audience"),
        (json!({ "aud": ["other", 7] }), "token-audience"),
        (json!({ "aud": ["guan", 7] }), "token-audience"),
        (json!({ "aud": { "guan": 1 } }), "token-audience"),
        (json!({ "exp": NOW - 60 }), "expired-token"),
        (json!({ "exp": -1 }), "expired-token"),
        (json!({ "exp": null }), "token-claims"),
        (json!({ "exp": "1900000000" }), "token-claims"),
        (json!({ "exp": 1e300 }), "token-claims"),
        (json!({ "nbf": NOW + 61 }), "token-not-yet-valid"),
        (json!({ "nbf": "0" }), "token-claims"),
        (json!({ "iat": NOW + 61 }), "token-not-yet-valid"),
        (
            json!({ "iat": NOW + 3600, "nbf": NOW }),
            "token-not-yet-valid",
        ),
        (json!({ "sub": null }), "token-claims"),
        (json!({ "sub": "" }), "token-claims"),
        (json!({ "sub": "a\nb" }), "token-claims"),
        (json!({ "sub": "x".repeat(256) }), "token-claims"),
        (json!({ "sub": 7 }), "token-claims"),
        (json!({ "cnf": { "jkt": "x" } }), "token-bound"),
        (json!({ "groups": ["staff"] }), "no-role"),
        (json!({ "groups": null }), "no-role"),
    ] {
        assert_eq!(word(&more), Err(why), "{more}");
    }
    for fine in [
        json!({ "aud": ["other", "guan-too"] }),
        json!({ "exp": NOW - 59 }),
        json!({ "exp": 1_800_000_000.9 }),
        json!({ "exp": u64::MAX }),
        json!({ "nbf": NOW + 60 }),
        json!({ "iat": null }),
        json!({ "groups": "llm-users" }),
    ] {
        assert!(word(&fine).is_ok(), "{fine}");
    }
    let strict = Issuer {
        max_age: Some(300),
        leeway: 0,
        ..issuer.clone()
    };
    let aged = |more: &Value| check(&ed.sign(&with(more)), &strict, &keys).map_err(|r| r.word());
    assert_eq!(aged(&json!({})).map(|a| a.until), Ok(NOW + 300));
    assert_eq!(aged(&json!({ "iat": NOW - 300 })), Err("expired-token"));
    assert_eq!(aged(&json!({ "iat": null })), Err("token-claims"));
}

#[test]
fn the_first_rule_that_fits_gives_role_and_project() {
    let ed = Signer::new("EdDSA", "k");
    let keys = set(&[&ed]);
    let project = |name: &str| Some(Arc::from(name));
    let issuer = Issuer {
        subject_claim: "oid".into(),
        project_claim: Some("team".into()),
        map: vec![
            rule(Some(("realm_access.roles", "admins")), "admin"),
            Rule {
                project: project("fixed"),
                ..rule(Some(("https://company.example/groups", "llm")), "user")
            },
            rule(Some(("scope", "llm.call")), "batch"),
            rule(Some(("a.b", "c")), "user"),
        ],
        ..issuer()
    };
    let given = |more: Value| {
        let mut more = more;
        more["oid"] = "o-1".into();
        let token = ed.sign(&with(&more));
        check(&token, &issuer, &keys)
            .map(|a| {
                (
                    a.subject,
                    a.role.to_string(),
                    a.project.map(|p| p.to_string()),
                )
            })
            .map_err(|refusal| refusal.word())
    };
    let some = |role: &str, project: &str| Ok(("o-1".into(), role.into(), Some(project.into())));
    let roles = json!({ "roles": ["x", "admins"] });
    assert_eq!(
        given(json!({ "realm_access": roles, "team": "red" })),
        some("admin", "red")
    );
    assert_eq!(given(json!({ "realm_access": roles })), Err("no-project"));
    assert_eq!(
        given(json!({ "realm_access": roles, "team": ["red"] })),
        Err("no-project")
    );
    assert_eq!(
        given(json!({ "https://company.example/groups": ["llm"], "scope": "llm.call" })),
        some("user", "fixed")
    );
    assert_eq!(
        given(json!({ "scope": "openid llm.call", "team": "red" })),
        some("batch", "red")
    );
    assert_eq!(
        given(json!({ "scope": "llm.calls", "team": "red" })),
        Err("no-role")
    );
    // A claim of that very name stands before the way through objects.
    assert_eq!(
        given(json!({ "a.b": "x", "a": { "b": "c" }, "team": "red" })),
        Err("no-role")
    );
    assert_eq!(
        given(json!({ "a": { "b": "c" }, "team": "red" })),
        some("user", "red")
    );
    let all = Issuer {
        map: vec![rule(None, "user")],
        project_claim: None,
        subject_claim: "sub".into(),
        ..issuer
    };
    assert_eq!(
        check(&ed.sign(&claims()), &all, &keys).map(|a| a.project),
        Ok(None)
    );
    let none = Issuer { map: vec![], ..all };
    let refused = check(&ed.sign(&claims()), &none, &keys).unwrap_err();
    assert_eq!(refused, Refusal::NotAdmitted(Unadmitted::NoRole));
    assert_eq!(refused.answer().status, 403);
}

#[test]
fn a_set_takes_what_can_verify_and_passes_over_the_rest() {
    let (rsa, ec) = (Signer::new("RS256", "rsa"), Signer::new("ES256", "ec"));
    let read = |keys: &[Value]| KeySet::read(json!({ "keys": keys }).to_string().as_bytes());
    let changed = |key: &Value, name: &str, value: Value| {
        let mut key = key.clone();
        key[name] = value;
        key
    };
    let (rsa, ec) = (rsa.jwk(), ec.jwk());
    let short = rsa["n"].as_str().unwrap().get(..171).unwrap().to_owned();
    for useless in [
        changed(&rsa, "use", "enc".into()),
        changed(&rsa, "key_ops", json!(["encrypt"])),
        changed(&rsa, "key_ops", json!("verify")),
        changed(&rsa, "alg", "RSA-OAEP".into()),
        changed(&rsa, "alg", "ES256".into()),
        changed(&rsa, "alg", "HS256".into()),
        changed(&rsa, "d", "AQAB".into()),
        changed(&rsa, "n", short.into()),
        changed(&rsa, "n", "AQAB".into()),
        changed(&rsa, "n", "not base64!".into()),
        changed(&rsa, "kid", 7.into()),
        changed(&rsa, "kid", "k".repeat(257).into()),
        changed(&ec, "x", ec["y"].clone()),
        changed(&ec, "x", "AQAB".into()),
        changed(&ec, "crv", "secp256k1".into()),
        json!({ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "kid": "rsa" }),
        json!({ "kty": "OKP", "crv": "X25519", "x": ec["x"] }),
        json!({ "kty": "new" }),
        json!("text"),
    ] {
        assert_eq!(
            read(std::slice::from_ref(&useless)),
            Err(KeySetFault::Empty),
            "{useless}"
        );
        assert_eq!(read(&[useless, ec.clone()]).map(|set| set.len()), Ok(1));
    }
    assert_eq!(read(&vec![ec; 65]), Err(KeySetFault::Size));
    assert_eq!(read(&[]), Err(KeySetFault::Empty));
    assert_eq!(KeySet::read(b"[]"), Err(KeySetFault::Form));
    assert_eq!(KeySet::read(br#"{"keys":{}}"#), Err(KeySetFault::Form));
    assert_eq!(
        KeySet::read(&vec![b' '; key_set::MOST_BYTES + 1]),
        Err(KeySetFault::Size)
    );
}

#[test]
fn one_text_for_every_token_that_is_not_believed() {
    let all = [
        Untrusted::Malformed,
        Untrusted::Algorithm,
        Untrusted::UnknownIssuer,
        Untrusted::UnknownKey,
        Untrusted::Signature,
        Untrusted::Audience,
        Untrusted::NotYetValid,
        Untrusted::Claims,
        Untrusted::Bound,
        Untrusted::ForeignAddress,
    ];
    let words: std::collections::BTreeSet<_> = all
        .iter()
        .map(|why| Refusal::BadToken(*why).word())
        .collect();
    assert_eq!(words.len(), all.len());
    for why in all {
        let answer = Refusal::BadToken(why).answer();
        assert_eq!(answer, Refusal::BadToken(Untrusted::Signature).answer());
        assert_eq!(answer.status, 401);
    }
}
