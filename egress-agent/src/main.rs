//! The command: arguments, logs, exit codes.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use egress_agent::cli::client::{ask, encode};
use egress_agent::cli::{
    Cli, Command, Datapath, Doctor, Explain, LogFormat, Manifest, Output, Query, exit, show,
};
use egress_agent::config::File;
use egress_agent::datapath::{self, Options};
use egress_agent::doctor::{self, CheckStatus};
use egress_agent::policy::explain::Explanation;
use egress_agent::registry::{self, crd};
use egress_agent::{agent, lock, metrics};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return ExitCode::from(exit::FAILED);
        }
    };
    let code = match cli.command {
        Command::Run(run) => {
            log_to_stderr(run.log_format);
            runtime.block_on(agent::run(&run)).map_or_else(
                |error| {
                    complain(&error.to_string());
                    error.exit_code()
                },
                |()| exit::OK,
            )
        }
        Command::Explain(question) => answer(runtime.block_on(explain(&question))),
        Command::Status(query) => answer(runtime.block_on(status(&query))),
        Command::Doctor(doctor) => diagnose(&doctor),
        Command::Uninstall(paths) => answer(uninstall(&paths)),
        Command::Crd(crd) => {
            answer(definitions().and_then(|objects| manifest(crd.output, &objects)))
        }
        Command::Rbac(rbac) => {
            let mut objects = registry::rights();
            if rbac.metrics_authentication {
                objects.extend(registry::metrics_rights());
            }
            answer(manifest(rbac.written.output, &objects))
        }
        Command::MetricsDoc => answer(Ok(metrics::reference().trim_end().to_owned())),
    };
    // Whatever still blocks, such as an event output that nobody reads, keeps no agent from ending.
    runtime.shutdown_background();
    ExitCode::from(code)
}

async fn explain(question: &Explain) -> anyhow::Result<String> {
    let (pod, destination) = (encode(&question.pod), encode(&question.destination));
    let path = format!("/explain?pod={pod}&dest={destination}");
    let value = ask(&question.query.run_dir, &path).await?;
    Ok(match question.query.output {
        Output::Json => serde_json::to_string_pretty(&value)?,
        Output::Table => serde_json::from_value::<Explanation>(value)?.to_string(),
    })
}

async fn status(query: &Query) -> anyhow::Result<String> {
    let value = ask(&query.run_dir, "/status").await?;
    Ok(match query.output {
        Output::Json => serde_json::to_string_pretty(&value)?,
        Output::Table => show::status(&value),
    })
}

fn uninstall(paths: &egress_agent::cli::Datapath) -> anyhow::Result<String> {
    let _lock = lock::Lock::take(&paths.run_dir)?;
    let _pins = paths.bpffs.exists().then(|| lock::Lock::take_pins(&paths.bpffs)).transpose()?;
    let options = Options {
        bpffs: paths.bpffs.clone(),
        kernel_log: false,
        capacity: None,
        attach: datapath::Way::default(),
    };
    let removed = datapath::uninstall(&options)?;
    metrics::forget(&paths.run_dir)?;
    Ok(format!(
        "removed {} links and {} programs and maps below {}; nothing is enforced on this node now",
        removed.links,
        removed.objects,
        paths.bpffs.display()
    ))
}

fn definitions() -> anyhow::Result<Vec<serde_json::Value>> {
    Ok(crd::definitions()?.map(|definition| definition.object).into())
}

/// Objects for the API server.
fn manifest(output: Manifest, objects: &[serde_json::Value]) -> anyhow::Result<String> {
    Ok(match output {
        Manifest::Yaml => crd::yaml(objects)?.trim_end().to_owned(),
        Manifest::Json => {
            let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects });
            serde_json::to_string_pretty(&list)?
        }
    })
}

fn diagnose(arguments: &Doctor) -> u8 {
    let path = arguments.config.clone().unwrap_or_default();
    let file =
        arguments.config.as_ref().map_or_else(|| Ok(File::default()), |path| File::read(path));
    let mark = match file.and_then(|file| file.mark(&path)) {
        Ok(mark) => mark.audit | mark.enforce,
        Err(error) => {
            complain(&error.to_string());
            return exit::USAGE;
        }
    };
    let Datapath { bpffs, run_dir } = &arguments.datapath;
    let capacity = arguments.table_size;
    let options = Options {
        bpffs: bpffs.clone(),
        kernel_log: false,
        capacity,
        attach: datapath::Way::default(),
    };
    let cgroup_root = arguments.cgroup_root.as_deref();
    let checks = doctor::examine(&doctor::Node { options: &options, run_dir, cgroup_root, mark });
    let worst = checks.iter().map(|check| check.status).max();
    let shown = match arguments.output {
        Output::Table => Ok(show::checks(&checks)),
        Output::Json => serde_json::to_string_pretty(&checks).map_err(Into::into),
    };
    let code = answer(shown);
    match worst {
        _ if code != exit::OK => code,
        Some(CheckStatus::Fail) => exit::CANNOT_ENFORCE,
        Some(CheckStatus::Warn) => exit::FAILED,
        Some(CheckStatus::Ok) | None => exit::OK,
    }
}

/// Prints an answer or a complaint; the exit code.
fn answer(result: anyhow::Result<String>) -> u8 {
    match result {
        // A reader that has gone away is not our failure.
        Ok(text) => {
            let _ = writeln!(std::io::stdout(), "{text}");
            exit::OK
        }
        Err(error) => {
            complain(&agent::causes(&error));
            exit::FAILED
        }
    }
}

fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "egress-agent: {message}");
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_env("EGRESS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
}
