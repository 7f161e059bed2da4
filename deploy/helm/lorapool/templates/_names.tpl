{{- define "lorapool.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The headless Service, which has the addresses of all ready nodes. */}}
{{- define "lorapool.nodes" -}}
{{ include "lorapool.fullname" . }}-nodes
{{- end -}}

{{- define "lorapool.gateway" -}}
{{ include "lorapool.fullname" . }}-gateway
{{- end -}}

{{- define "lorapool.image" -}}
{{- $suffix := ternary "-cuda" "" .Values.gpu.enabled -}}
{{ .Values.image.repository }}:{{ default (printf "%s%s" .Chart.AppVersion $suffix) .Values.image.tag }}
{{- end -}}

{{/* Of one component: call with (dict "root" . "component" "node"). */}}
{{- define "lorapool.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "lorapool.labels" -}}
{{ include "lorapool.selector" . }}
app.kubernetes.io/part-of: lorapool
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* What every container here runs under: no root, no capability, nothing to write on but its volumes. */}}
{{- define "lorapool.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "lorapool.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}
