// A client of KEDA's external-push scalers, made from KEDA's own protocol definition. It asks one question and
// prints the answer as JSON, one message a line.
//
// usage: keda-client [-ca FILE -cert FILE -key FILE] ADDR is-active|stream|spec|stream-spec|metrics [KEY=VALUE...]
//
// The values are the metadata of a ScaledObject's trigger. It ends with the code of the gRPC status.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		status := status.Convert(err)
		fmt.Fprintf(os.Stderr, "%s: %s\n", status.Code(), status.Message())
		os.Exit(int(status.Code()))
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("keda-client", flag.ExitOnError)
	ca, cert, key := flags.String("ca", "", ""), flags.String("cert", "", ""), flags.String("key", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	transport, err := security(*ca, *cert, *key)
	if err != nil {
		return err
	}
	args = flags.Args()
	if len(args) < 2 {
		return errors.New("usage: keda-client ADDR QUESTION [KEY=VALUE...]")
	}
	metadata := map[string]string{}
	for _, pair := range args[2:] {
		key, value, _ := strings.Cut(pair, "=")
		metadata[key] = value
	}
	object := &externalscaler.ScaledObjectRef{Name: "buildkitd", Namespace: "build", ScalerMetadata: metadata}
	// As KEDA dials: without a deadline, and in turn where the name has several addresses.
	config := grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin":{}}]}`)
	conn, err := grpc.NewClient(args[0], grpc.WithTransportCredentials(transport), config)
	if err != nil {
		return err
	}
	defer conn.Close()
	client, ctx := externalscaler.NewExternalScalerClient(conn), context.Background()
	switch args[1] {
	case "is-active":
		return told(client.IsActive(ctx, object))
	case "spec":
		return told(client.GetMetricSpec(ctx, object))
	case "metrics":
		return told(client.GetMetrics(ctx, &externalscaler.GetMetricsRequest{ScaledObjectRef: object, MetricName: "builds"}))
	case "stream":
		stream, err := client.StreamIsActive(ctx, object)
		return follow(stream, err)
	case "stream-spec":
		stream, err := client.StreamMetricSpec(ctx, object)
		return follow(stream, err)
	}
	return fmt.Errorf("unknown question %s", args[1])
}

// security is TLS with those authorities and, if there is one, that certificate of the client's; else none.
func security(ca, cert, key string) (credentials.TransportCredentials, error) {
	if ca == "" {
		return insecure.NewCredentials(), nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(pem)
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(config), nil
}

func told(answer any, err error) error {
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(answer)
}

func follow[T any](stream grpc.ServerStreamingClient[T], err error) error {
	for err == nil {
		var message *T
		if message, err = stream.Recv(); err == nil {
			err = told(message, nil)
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
