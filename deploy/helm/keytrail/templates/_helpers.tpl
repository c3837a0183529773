{{- define "keytrail.name" -}}
{{- .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "keytrail.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "keytrail.selector" -}}
app.kubernetes.io/name: {{ include "keytrail.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "keytrail.labels" -}}
{{ include "keytrail.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "keytrail.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "keytrail.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Metrics and health checks are served by TLS, but for one version as in 0.1. */}}
{{- define "keytrail.scheme" -}}
{{- if eq (default "token" .Values.config.access) "open" -}}http{{- else -}}https{{- end -}}
{{- end -}}
