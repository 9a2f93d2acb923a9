//! What the container's image runs, without a daemon: its entry point, with a program of the same name in front.

#[cfg(unix)]
#[test]
fn the_entry_point_serves_what_sagemaker_mounts_and_passes_other_commands_on() {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::Command;

    let place = tempfile::tempdir().unwrap();
    let program = place.path().join("llmcls");
    fs::write(&program, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        let path = format!("{}:{}", place.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(packaging.join("entrypoint"));
        let output = command.args(arguments).env("PATH", path).envs(environment.iter().copied()).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let served = ["serve", "--run", "/opt/ml/model", "--host", "0.0.0.0", "--port", "8080"];
    assert_eq!(run(&["serve"], &[]), served);
    assert_eq!(run(&[], &[]), served);
    let moved = run(&["serve"], &[("SAGEMAKER_BIND_TO_PORT", "9000"), ("LLMCLS_MODEL_DIR", "/m odel")]);
    assert_eq!(moved, ["serve", "--run", "/m odel", "--host", "0.0.0.0", "--port", "9000"]);
    assert_eq!(run(&["predict", "--text", "a b"], &[]), ["predict", "--text", "a b"]);

    // Every file that the image copies is there, and it does not run as root.
    let dockerfile = fs::read_to_string(packaging.join("Dockerfile")).unwrap();
    assert!(dockerfile.contains("\nUSER llmcls\n") && dockerfile.contains("ENTRYPOINT [\"entrypoint\"]"));
    for name in ["packaging/entrypoint", "scripts/licenses", "LICENSE", "Cargo.lock"] {
        assert!(packaging.join("..").join(name).is_file(), "{name}");
    }
}
