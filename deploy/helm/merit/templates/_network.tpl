{{/* Who may reach which of Merit's ports. */}}
{{- define "merit.ingress" -}}
- ports: [{port: 8080, protocol: TCP}]
  {{- with .Values.networkPolicy.gatewayFrom }}
  from:
    {{- toYaml . | nindent 4 }}
    - podSelector: # of helm test
        matchLabels:
          app.kubernetes.io/name: {{ include "merit.name" $ }}-test
          app.kubernetes.io/instance: {{ $.Release.Name }}
  {{- end }}
- ports:
    - {port: 8081, protocol: TCP}
    {{- if .Values.ingest.grpc }}
    - {port: 8082, protocol: TCP}
    {{- end }}
  from:
    {{- if .Values.networkPolicy.ingestFrom }}
    {{- toYaml .Values.networkPolicy.ingestFrom | nindent 4 }}
    {{- else }}
    - podSelector: {}
    {{- end }}
{{- if include "merit.rls" . }}
# Nobody but the proxies, not even helm test: who asks is believed.
- ports: [{port: 8084, protocol: TCP}]
  from:
    {{- with .Values.networkPolicy.rlsFrom }}
    {{- toYaml . | nindent 4 }}
    {{- else }}
    {{- /* An empty list would be everybody. */}}
    {{- fail "networkPolicy.rlsFrom: the proxies that may reach rls" }}
    {{- end }}
{{- end }}
- ports: [{port: 9901, protocol: TCP}]
  from:
    {{- if .Values.networkPolicy.metricsFrom }}
    {{- toYaml .Values.networkPolicy.metricsFrom | nindent 4 }}
    - podSelector: # of helm test
        matchLabels:
          app.kubernetes.io/name: {{ include "merit.name" . }}-test
          app.kubernetes.io/instance: {{ .Release.Name }}
    {{- else }}
    - namespaceSelector: {}
    {{- end }}
{{- end -}}

{{/* The ports of `networkPolicy.egressPorts`, and those in the addresses that values name; in order, each once. */}}
{{- define "merit.egressPorts" -}}
{{- $v := .Values -}}
{{- $ports := list -}}
{{- range $v.networkPolicy.egressPorts -}}{{- $ports = append $ports (int64 .) -}}{{- end -}}
{{- $addresses := concat $v.store.cluster ($v.store.sentinel.urls | default list) (splitList "," $v.bus.address)
  (list $v.store.url $v.identity.jwksUrl $v.feed.url $v.feed.forwardTo $v.trace.endpoint) -}}
{{- range $addresses -}}
{{- $host := regexFind "^([a-z+]+://)?[^/?]*" (trim .) -}}
{{- with regexFind ":[0-9]+$" $host -}}
{{- $ports = append $ports (trimPrefix ":" . | int64) -}}
{{- end -}}
{{- end -}}
{{- join " " (uniq $ports) -}}
{{- end -}}
