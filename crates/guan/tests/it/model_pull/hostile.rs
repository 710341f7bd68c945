//! Servers that cut, stall, lie, redirect and change their files.

use std::sync::mpsc;

use super::{Bench, Reply, Server, fs, gguf, sha256};

#[test]
fn a_cut_line_goes_on_where_it_was_and_no_byte_comes_twice() {
    let (bench, body) = (Bench::new(), gguf(400_000, 10));
    let served = body.clone();
    let server = Server::start(move |asked| {
        let reply = Reply::ranged(asked, &served, "\"v1\"");
        if asked.nth == 0 {
            reply.cut(150_000)
        } else {
            reply
        }
    });
    let told = bench.pull(&[&server.url("/m.gguf")]).well();
    assert_eq!(fs::read(bench.file("m.gguf")).unwrap(), body);
    assert_eq!(server.sent("/m.gguf"), body.len());
    let asked = server.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(
        (asked[1].from, asked[1].if_range.as_deref()),
        (Some(150_000), Some("\"v1\""))
    );
    assert!(told.err.contains("trying again"), "{told:?}");
}

#[test]
fn a_later_run_goes_on_where_an_earlier_one_ended() {
    let (bench, body) = (Bench::new(), gguf(400_000, 11));
    let served = body.clone();
    let server = Server::start(move |asked| match asked.nth {
        0 => Reply::ranged(asked, &served, "\"v1\"").cut(100_000),
        1 => Reply::new(403, ""),
        _ => Reply::ranged(asked, &served, "\"v1\""),
    });
    bench.pull(&[&server.url("/m.gguf")]).badly(&["403"]);
    assert_eq!(
        fs::metadata(bench.file("m.gguf.part")).unwrap().len(),
        100_000
    );
    let told = bench.pull(&[&server.url("/m.gguf")]).well();
    assert!(told.err.contains("going on at 100.0 kB"), "{told:?}");
    assert_eq!(fs::read(bench.file("m.gguf")).unwrap(), body);
    assert_eq!(server.sent("/m.gguf"), body.len());
    assert_eq!(bench.names(), ["m.gguf", "m.toml"]);
}

#[test]
fn a_line_that_is_always_cut_ends_after_five_repetitions_and_keeps_the_part() {
    let bench = Bench::new();
    let server = Server::start(|asked| Reply::ranged(asked, &gguf(50_000, 12), "\"v1\"").cut(1000));
    bench
        .pull(&[&server.url("/m.gguf")])
        .badly(&["broke off", "Run the same command again"]);
    assert_eq!(server.asked().len(), 6);
    assert_eq!(fs::metadata(bench.file("m.gguf.part")).unwrap().len(), 6000);
}

#[test]
fn a_wall_that_breaks_every_line_counts_as_nobody_there() {
    let bench = Bench::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let wall = std::thread::spawn(move || listener.incoming().take(3).for_each(drop));
    bench
        .pull(&[&format!("http://{at}/m.gguf")])
        .badly(&["can't be reached"]);
    wall.join().unwrap();
    assert!(bench.names().is_empty());
}

#[test]
fn a_server_without_ranges_begins_again() {
    let (bench, body) = (Bench::new(), gguf(200_000, 13));
    let served = body.clone();
    let server = Server::start(move |asked| {
        let reply = Reply::new(200, served.clone()).header("etag", "\"v1\"");
        if asked.nth == 0 {
            reply.cut(90_000)
        } else {
            reply
        }
    });
    bench.pull(&[&server.url("/m.gguf")]).well();
    assert_eq!(fs::read(bench.file("m.gguf")).unwrap(), body);
}

#[test]
fn without_an_etag_and_without_a_digest_nothing_is_continued() {
    let (bench, body) = (Bench::new(), gguf(200_000, 14));
    let served = body.clone();
    let server = Server::start(move |asked| {
        // weak: not the same byte for byte
        let reply = Reply::ranged(asked, &served, "W/\"v1\"");
        if asked.nth == 0 {
            reply.cut(90_000)
        } else {
            reply
        }
    });
    bench.pull(&[&server.url("/m.gguf")]).well();
    assert_eq!(fs::read(bench.file("m.gguf")).unwrap(), body);
    assert_eq!(server.asked()[1].from, None);
}

#[test]
fn a_file_that_changes_in_between_is_loaded_anew() {
    // well-behaved: If-Range doesn't fit, so the whole new file comes
    let (old, new) = (gguf(200_000, 15), gguf(210_000, 16));
    for obeys_if_range in [true, false] {
        let (bench, old, served) = (Bench::new(), old.clone(), new.clone());
        let server = Server::start(move |asked| match asked.nth {
            0 => Reply::ranged(asked, &old, "\"v1\"").cut(90_000),
            _ => {
                let mut asked = asked.clone();
                if !obeys_if_range {
                    asked.if_range = None;
                }
                Reply::ranged(&asked, &served, "\"v2\"")
            }
        });
        bench.pull(&[&server.url("/m.gguf")]).well();
        assert!(
            fs::read(bench.file("m.gguf")).unwrap() == new,
            "{obeys_if_range}"
        );
    }
}

#[test]
fn a_wrong_digest_leaves_nothing_and_says_both() {
    let (bench, body) = (Bench::new(), gguf(10_000, 17));
    let (served, wanted) = (body.clone(), sha256(b"something else"));
    let server = Server::start(move |asked| Reply::ranged(asked, &served, "\"a\""));
    bench
        .pull(&[&server.url("/m.gguf"), "--sha256", &wanted])
        .badly(&[&wanted, &sha256(&body), "thrown away"]);
    assert!(bench.names().is_empty(), "{:?}", bench.names());
}

#[test]
fn a_part_that_was_damaged_on_the_disk_is_loaded_anew() {
    let (bench, body) = (Bench::new(), gguf(100_000, 18));
    let (served, digest) = (body.clone(), sha256(&body));
    let server = Server::start(move |asked| match asked.nth {
        0 => Reply::ranged(asked, &served, "\"v1\"").cut(50_000),
        1 => Reply::new(404, ""),
        _ => Reply::ranged(asked, &served, "\"v1\""),
    });
    let args = [&server.url("/m.gguf"), "--sha256", &digest];
    bench.pull(&args).badly(&["404"]);
    let mut part = fs::read(bench.file("m.gguf.part")).unwrap();
    part[40_000] ^= 1;
    fs::write(bench.file("m.gguf.part"), part).unwrap();
    let told = bench.pull(&args).well();
    assert!(told.err.contains("starting afresh"), "{told:?}");
    assert_eq!(fs::read(bench.file("m.gguf")).unwrap(), body);
}

#[test]
fn a_redirect_to_plain_http_is_refused() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::redirect("http://cdn.invalid/m.gguf?sig=s3cret"));
    let told = bench
        .pull(&[&server.url("/m.gguf")])
        .badly(&["not HTTPS", "cdn.invalid"]);
    assert!(!told.err.contains("s3cret"), "{told:?}");
    assert!(bench.names().is_empty());
}

#[test]
fn a_circle_of_redirects_ends() {
    let bench = Bench::new();
    let server = Server::start(|asked| {
        Reply::redirect(if asked.path == "/m.gguf" {
            "/n.gguf"
        } else {
            "m.gguf"
        })
    });
    bench
        .pull(&[&server.url("/m.gguf")])
        .badly(&["redirects more than 5 times"]);
    assert_eq!(server.asked().len(), 6);
}

#[test]
fn more_bytes_than_announced_are_cut_off() {
    let bench = Bench::new();
    let server = Server::start(|asked| match asked.path.as_str() {
        "/m.gguf" => Reply::redirect("/cdn").header("x-linked-size", "5000"),
        _ => Reply::new(200, gguf(900_000, 19)).chunked(),
    });
    bench
        .pull(&[&server.url("/m.gguf")])
        .badly(&["5000 were expected"]);
    assert!(bench.names().is_empty(), "{:?}", bench.names());
}

#[test]
fn another_length_than_the_hub_says_is_refused_before_it_is_loaded() {
    let bench = Bench::new();
    let server = Server::start(|asked| match asked.path.as_str() {
        "/m.gguf" => Reply::redirect("/cdn").header("x-linked-size", "5000"),
        _ => Reply::ranged(asked, &gguf(6000, 20), "\"a\""),
    });
    bench
        .pull(&[&server.url("/m.gguf")])
        .badly(&["6000 bytes", "5000 were expected"]);
    assert!(bench.names().is_empty());
}

#[test]
fn a_body_of_unknown_length_is_refused() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::new(200, gguf(6000, 21)).lengthless());
    bench
        .pull(&[&server.url("/m.gguf")])
        .badly(&["does not say how long"]);
    assert!(bench.names().is_empty());
}

#[test]
fn a_missing_file_ends_at_once_and_trouble_of_the_server_is_waited_out() {
    let (bench, body) = (Bench::new(), gguf(10_000, 22));
    let server = Server::start(move |asked| match (asked.path.as_str(), asked.nth) {
        ("/m.gguf", 0) => Reply::new(500, "oops"),
        ("/m.gguf", 1) => Reply::new(429, "slow down"),
        ("/m.gguf", _) => Reply::ranged(asked, &body, "\"a\""),
        _ => Reply::new(404, "no"),
    });
    bench
        .pull(&[&server.url("/no.gguf")])
        .badly(&["404", "/no.gguf"]);
    assert_eq!(server.asked().len(), 1);
    assert!(bench.names().is_empty());
    bench.pull(&[&server.url("/m.gguf")]).well();
    assert_eq!(server.asked().len(), 4);
}

#[test]
fn a_stalled_line_is_given_up_and_continued() {
    let (bench, body) = (Bench::new(), gguf(100_000, 23));
    let served = body.clone();
    let server = Server::start(move |asked| {
        let reply = Reply::ranged(asked, &served, "\"a\"");
        if asked.nth == 0 {
            reply.stall(40_000)
        } else {
            reply
        }
    });
    bench
        .run(&[
            "pull",
            "--stall-ms",
            "1500",
            "--pause-ms",
            "1",
            &server.url("/m.gguf"),
        ])
        .well();
    assert_eq!(fs::read(bench.file("m.gguf")).unwrap(), body);
    assert_eq!(server.sent("/m.gguf"), body.len());
}

#[test]
fn a_web_page_is_no_model() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::new(200, "<html>log in first</html>"));
    bench
        .pull(&[&server.url("/m.gguf")])
        .badly(&["not a GGUF file"]);
    assert!(bench.names().is_empty());
}

#[test]
fn the_digest_that_the_hub_publishes_is_required() {
    let body = gguf(30_000, 24);
    for (published, fits) in [(sha256(&body), true), (sha256(b"other"), false)] {
        let (bench, served) = (Bench::new(), body.clone());
        let server = Server::start(move |asked| match asked.path.as_str() {
            "/cdn" => Reply::ranged(asked, &served, "\"cdn\""),
            _ => Reply::redirect("/cdn").header("x-linked-etag", format!("\"{published}\"")),
        });
        let told = bench.pull(&[&server.url("/O/N/resolve/main/m.gguf"), "--json"]);
        if fits {
            assert_eq!(told.well().json()["digest_from"], "hub");
        } else {
            told.badly(&["thrown away"]);
            assert!(bench.names().is_empty());
        }
    }
}

#[test]
fn the_list_of_files_of_the_hub_is_asked_for_the_digest() {
    let (bench, body) = (Bench::new(), gguf(30_000, 25));
    let digest = sha256(&body);
    let server = Server::start(move |asked| {
        if asked
            .path
            .starts_with("/api/v1/models/O/N/repo/files?Revision=master")
        {
            let list = format!(
                r#"{{"Data":{{"Files":[{{"Path":"m.gguf","Size":30000,"Sha256":"{digest}"}}]}}}}"#
            );
            return Reply::new(200, list);
        }
        Reply::ranged(asked, &body, "\"a\"")
    });
    let told = bench
        .pull(&[&server.url("/models/O/N/resolve/master/m.gguf"), "--json"])
        .well();
    assert_eq!(told.json()["digest_from"], "hub");
}

#[test]
fn two_pulls_do_not_mix() {
    let bench = Bench::new();
    let (arrived, waits) = mpsc::channel();
    let server = Server::start(move |asked| {
        arrived.send(()).unwrap();
        Reply::ranged(asked, &gguf(10_000, 26), "\"a\"").stall(5000)
    });
    let mut first = bench
        .command(&["pull", &server.url("/m.gguf")])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    waits.recv().unwrap();
    bench
        .pull(&[&server.url("/n.gguf")])
        .badly(&["another `guan model` command"]);
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(
        bench.names().contains(&"m.gguf.part".to_owned()),
        "{:?}",
        bench.names()
    );
    // a killed command leaves no lock behind
    bench.run(&["rm", "m"]).well();
    assert!(bench.names().is_empty(), "{:?}", bench.names());
}
