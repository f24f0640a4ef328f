// A program that builds with BuildKit's Go client as many do: it calls Client.Solve, which sends no Ping, and shows
// only the names of the steps.
//
// usage: solve-client ADDR CONTEXT OUTPUT
//
// It builds the Dockerfile of the directory CONTEXT and writes the result as a tar file to OUTPUT.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: solve-client ADDR CONTEXT OUTPUT")
		os.Exit(2)
	}
	if err := build(context.Background(), os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, addr, dir, output string) error {
	builder, err := client.New(ctx, addr)
	if err != nil {
		return err
	}
	defer builder.Close()
	files, err := fsutil.NewFS(dir)
	if err != nil {
		return err
	}
	create := func(map[string]string) (io.WriteCloser, error) { return os.Create(output) }
	options := client.SolveOpt{
		Frontend:    "dockerfile.v0",
		LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": files},
		Exports:     []client.ExportEntry{{Type: client.ExporterTar, Output: create}},
	}
	steps := make(chan *client.SolveStatus)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		_, err := builder.Solve(ctx, nil, options, steps)
		return err
	})
	group.Go(func() error {
		for status := range steps {
			for _, step := range status.Vertexes {
				fmt.Println(step.Name)
			}
			for _, line := range status.Logs {
				os.Stdout.Write(line.Data)
			}
		}
		return nil
	})
	return group.Wait()
}
