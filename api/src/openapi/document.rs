//! A small builder over utoipa's: one call a route, schemas collected on the way.

use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ComponentsBuilder, ObjectBuilder, Type};
use utoipa::openapi::{
    ContentBuilder, Info, OpenApi, OpenApiBuilder, PathsBuilder, Ref, RefOr, Required, Response,
    ResponseBuilder, Schema,
};
use utoipa::{PartialSchema, ToSchema};

use crate::error::ApiError;

const JSON: &str = "application/json";
/// One JSON value a line, as it becomes known; blank lines are heartbeats.
const NDJSON: &str = "application/x-ndjson";
const BYTES: &str = "application/octet-stream";

/// A document under construction.
pub(super) struct Document {
    title: &'static str,
    paths: PathsBuilder,
    schemas: Vec<(String, RefOr<Schema>)>,
}

/// One route under construction.
pub(super) struct Route {
    operation: OperationBuilder,
    schemas: Vec<(String, RefOr<Schema>)>,
}

impl Route {
    pub(super) fn new(summary: &str) -> Self {
        Self { operation: OperationBuilder::new().summary(Some(summary)), schemas: Vec::new() }
    }

    /// Refers to the type by name, so that each schema stands once.
    fn reference<T: ToSchema>(&mut self) -> RefOr<Schema> {
        T::schemas(&mut self.schemas);
        self.schemas.push((T::name().into_owned(), T::schema()));
        Ref::from_schema_name(T::name()).into()
    }

    pub(super) fn body<T: ToSchema>(mut self) -> Self {
        let schema = self.reference::<T>();
        let body = RequestBodyBuilder::new()
            .content(JSON, ContentBuilder::new().schema(Some(schema)).build())
            .required(Some(Required::True))
            .build();
        Self { operation: self.operation.request_body(Some(body)), ..self }
    }

    pub(super) fn bytes_body(self) -> Self {
        let content = ContentBuilder::new().schema(Some(binary())).build();
        let body = RequestBodyBuilder::new().content(BYTES, content).build();
        Self { operation: self.operation.request_body(Some(body)), ..self }
    }

    fn success(self, status: &str, content_type: &str, schema: RefOr<Schema>) -> Self {
        let response = ResponseBuilder::new()
            .description("done")
            .content(content_type, ContentBuilder::new().schema(Some(schema)).build())
            .build();
        Self { operation: self.operation.response(status, response), ..self }
    }

    pub(super) fn reply<T: ToSchema>(mut self) -> Self {
        let schema = self.reference::<T>();
        self.success("200", JSON, schema)
    }

    pub(super) fn list<T: ToSchema>(mut self) -> Self {
        let schema = self.reference::<T>();
        self.success("200", JSON, utoipa::openapi::ArrayBuilder::new().items(schema).into())
    }

    pub(super) fn stream<T: ToSchema>(mut self) -> Self {
        let schema = self.reference::<T>();
        self.success("200", NDJSON, schema)
    }

    pub(super) fn bytes(self) -> Self {
        self.success("200", BYTES, binary())
    }

    pub(super) fn empty(self) -> Self {
        Self { operation: self.operation.response("204", Response::new("done")), ..self }
    }

    /// The connection goes on in another protocol.
    pub(super) fn upgrade(self, protocol: &str) -> Self {
        Self {
            operation: self.operation.response("101", Response::new(format!("goes on as {protocol}"))),
            ..self
        }
    }

    pub(super) fn query(self, name: &str, kind: Type, description: &str) -> Self {
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Query)
            .required(Required::False)
            .description(Some(description))
            .schema(Some(ObjectBuilder::new().schema_type(kind).build()))
            .build();
        Self { operation: self.operation.parameter(parameter), ..self }
    }
}

fn binary() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).content_media_type(BYTES).into()
}

impl Document {
    pub(super) fn new(title: &'static str) -> Self {
        let error = (ApiError::name().into_owned(), ApiError::schema());
        let mut schemas = vec![error];
        ApiError::schemas(&mut schemas);
        Self { title, paths: PathsBuilder::new(), schemas }
    }

    pub(super) fn route(mut self, method: HttpMethod, path: &str, route: Route) -> Self {
        let refusal = ResponseBuilder::new()
            .description("refused or failed")
            .content(
                JSON,
                ContentBuilder::new().schema(Some(Ref::from_schema_name(ApiError::name()))).build(),
            )
            .build();
        let mut operation = route.operation.response("default", refusal);
        for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            let parameter = ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .schema(Some(ObjectBuilder::new().schema_type(Type::String).build()))
                .build();
            operation = operation.parameter(parameter);
        }
        self.schemas.extend(route.schemas);
        let item = utoipa::openapi::PathItem::new(method, operation.build());
        self.paths = self.paths.path(path, item);
        self
    }

    pub(super) fn build(mut self) -> OpenApi {
        self.schemas.sort_by(|one, other| one.0.cmp(&other.0));
        self.schemas.dedup_by(|one, other| one.0 == other.0);
        let components = ComponentsBuilder::new().schemas_from_iter(self.schemas).build();
        OpenApiBuilder::new()
            .info(Info::new(self.title, "1"))
            .paths(self.paths)
            .components(Some(components))
            .build()
    }
}
