//! Compiles a catalog document: globs, and indices that the probes send.

use super::{
    Catalog, CatalogError, EXPECTATION_CLASS,
    entry::{CatalogDocument, CredentialClass, FileFormat},
    glob::{host_globs, in_any_home, name_glob, path_glob, path_globs},
    wildcard::{Wildcard, WildcardSet},
};
use crate::model::{Lifetime, Role};
use globset::{Glob, GlobSet, GlobSetBuilder};
use monitor_common::scan::HEADER_MAX;
use serde::{Deserialize, Serialize};

/// What a configuration adds to the embedded catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogSources {
    /// A catalog document, whose entries come first; may be empty.
    pub added: String,
    /// Files and sockets that expectations name.
    pub files: Vec<String>,
    /// Variables that expectations name.
    pub variables: Vec<String>,
}

const EMBEDDED: &str = include_str!("catalog.yaml");

impl Catalog {
    /// Compiles the embedded catalog, preceded by the additions of a configuration and followed by
    /// the places that expectations name.
    pub fn new(
        added: &str,
        written_files: &[String],
        written_variables: &[String],
    ) -> Result<Self, CatalogError> {
        Self::compile(CatalogSources {
            added: added.to_owned(),
            files: written_files.to_vec(),
            variables: written_variables.to_vec(),
        })
    }

    /// As [`new`](Self::new).
    pub fn compile(sources: CatalogSources) -> Result<Self, CatalogError> {
        let parse = |text: &str| -> Result<CatalogDocument, CatalogError> {
            if text.trim().is_empty() {
                return Ok(CatalogDocument::default());
            }
            serde_saphyr::from_str(text).map_err(|error| CatalogError::Syntax(error.into()))
        };
        let CatalogSources {
            added,
            files,
            variables,
        } = &sources;
        let mut document = parse(added)?;
        document.append(parse(EMBEDDED)?);
        document.classes.push(CredentialClass {
            class: EXPECTATION_CLASS.to_owned(),
            role: Role::Access,
            lifetime: Lifetime::Static,
            short_form: false,
            files: files.clone(),
            sockets: files.clone(),
            format: FileFormat::Token,
            keys: Vec::new(),
            environment: variables.clone(),
            url_environment: Vec::new(),
            prefixes: Vec::new(),
            headers: Vec::new(),
            home: Vec::new(),
            self_hosted: false,
            marked: false,
            jwt: false,
            usual: Vec::new(),
        });
        let mut catalog = compile(document)?;
        catalog.sources = sources;
        Ok(catalog)
    }

    /// What it was compiled from, apart from the embedded catalog.
    pub fn sources(&self) -> &CatalogSources {
        &self.sources
    }
}

impl CatalogDocument {
    /// Adds the entries of another document after these.
    fn append(&mut self, other: Self) {
        let Self {
            classes,
            never_files,
            never_environment,
            metadata,
            headers,
            authenticators,
            answers,
            pointers,
            tenants,
            gateways,
            ci_systems,
            ai_agents,
        } = other;
        self.classes.extend(classes);
        self.never_files.extend(never_files);
        self.never_environment.extend(never_environment);
        self.metadata.extend(metadata);
        self.headers.extend(headers);
        self.authenticators.extend(authenticators);
        self.answers.extend(answers);
        self.pointers.extend(pointers);
        self.tenants.extend(tenants);
        self.gateways.extend(gateways);
        self.ci_systems.extend(ci_systems);
        self.ai_agents.extend(ai_agents);
    }
}

/// What the classes list, with the index of the class.
#[derive(Default)]
struct ClassTables {
    files: Vec<Glob>,
    file_class: Vec<usize>,
    sockets: Vec<Glob>,
    socket_class: Vec<usize>,
    file_globs: Vec<String>,
    variables: Vec<Glob>,
    variable_class: Vec<(usize, bool)>,
    prefixes: Vec<(String, usize)>,
    headers: Vec<(String, Option<usize>)>,
    homes: Vec<GlobSet>,
    usual: Vec<GlobSet>,
}

impl ClassTables {
    fn add(&mut self, index: usize, class: &CredentialClass) -> Result<(), CatalogError> {
        for file in &class.files {
            let file = in_any_home(file);
            self.files.push(path_glob(&class.class, &file)?);
            self.file_class.push(index);
            self.file_globs.push(file);
        }
        for socket in &class.sockets {
            let socket = in_any_home(socket);
            self.sockets.push(path_glob(&class.class, &socket)?);
            self.socket_class.push(index);
            self.file_globs.push(socket);
        }
        let plain = class.environment.iter().map(|name| (name, true));
        let urls = class.url_environment.iter().map(|name| (name, false));
        for (name, plain) in plain.chain(urls) {
            self.variables.push(name_glob(&class.class, name)?);
            self.variable_class.push((index, plain));
        }
        let headers = class.headers.iter();
        self.headers
            .extend(headers.map(|header| (header.to_ascii_lowercase(), Some(index))));
        let prefixes = class.prefixes.iter();
        self.prefixes
            .extend(prefixes.map(|prefix| (prefix.clone(), index)));
        self.homes.push(host_globs(&class.class, &class.home)?);
        self.usual.push(path_globs(&class.class, &class.usual)?);
        Ok(())
    }

    /// Adds headers that may hold a secret of any class.
    fn add_headers(&mut self, headers: &[String]) {
        for header in headers {
            let header = header.to_ascii_lowercase();
            if !self.headers.iter().any(|(known, _)| *known == header) {
                self.headers.push((header, None));
            }
        }
    }
}

fn compile(document: CatalogDocument) -> Result<Catalog, CatalogError> {
    let mut tables = ClassTables::default();
    for (index, class) in document.classes.iter().enumerate() {
        tables.add(index, class)?;
    }
    tables.add_headers(&document.headers);
    let names = tables.headers.iter().map(|(name, _)| name);
    let fields = document.answers.iter().map(|answer| &answer.field);
    if let Some(name) = names.chain(fields).find(|name| name.len() > HEADER_MAX) {
        return Err(CatalogError::Header(name.clone()));
    }
    let mut authenticators = Vec::new();
    for authenticator in document.authenticators {
        let hosts = host_globs(&authenticator.name, &authenticator.hosts)?;
        authenticators.push((authenticator, hosts));
    }
    let never = document.never_environment.iter();
    let never_variables = never
        .map(|name| name_glob("never_environment", name))
        .collect::<Result<_, _>>()?;
    let addresses = document.metadata.iter();
    let gateways = document.gateways.into_iter();
    Ok(Catalog {
        sources: CatalogSources::default(),
        files: build(tables.files)?,
        file_class: tables.file_class,
        sockets: build(tables.sockets)?,
        socket_class: tables.socket_class,
        never_files: path_globs("never_files", &document.never_files)?,
        variables: build(tables.variables)?,
        variable_class: tables.variable_class,
        never_variables: build(never_variables)?,
        prefixes: tables.prefixes,
        headers: tables.headers,
        authenticators,
        answers: document.answers,
        pointers: document.pointers,
        tenants: WildcardSet::new(document.tenants.iter().map(String::as_str)),
        gateways: gateways
            .map(|gateway| (Wildcard::new(&gateway.variable), gateway.classes))
            .collect(),
        ci_systems: document.ci_systems,
        ai_agents: document.ai_agents,
        homes: tables.homes,
        usual: tables.usual,
        metadata: addresses
            .filter_map(|address| address.parse().ok())
            .collect(),
        file_globs: tables.file_globs,
        classes: document.classes,
    })
}

fn build(globs: Vec<Glob>) -> Result<GlobSet, CatalogError> {
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        builder.add(glob);
    }
    builder.build().map_err(|source| CatalogError::Glob {
        class: "all".to_owned(),
        glob: "the set of all globs".to_owned(),
        source,
    })
}
