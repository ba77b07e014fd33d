# frozen_string_literal: true

require "digest"
require "fileutils"

module RubyBuild
  # `assets:precompile` of a Rails application that has the task and has not run it itself.
  #
  # The compiled assets of the previous package are taken over when nothing they can depend on has
  # changed. Sprockets and Propshaft read asset files, configuration and gems; a bundler of CSS or
  # JavaScript, an ERB asset or a task of the application's own may read anything, so then every
  # file counts.
  class Assets
    PIPELINES = %w[sprockets-rails propshaft].freeze
    READ_ANYTHING = %w[
      tailwindcss-rails tailwindcss-ruby cssbundling-rails jsbundling-rails dartsass-rails
      vite_rails shakapacker webpacker turbopack-rails i18n-js js-routes
    ].freeze
    MANIFESTS = %w[.sprockets-manifest-*.json sprockets-manifest-*.json manifest-*.json .manifest.json].freeze
    # Files that no asset is made of, where nothing can read anything.
    NOT_ASSETS = %r{\A(?:
      app/(?:channels|controllers|helpers|jobs|mailers|models|views)/.*\.(?:rb|erb|haml|slim|builder|jbuilder) |
      (?:db|doc|docs|log|spec|storage|test|tmp|vendor/bundle|\.bundle|\.mogok|\.github)/.* |
      public/.* | [^/]+\.md | Procfile | \.[^/]+
    )\z}x

    def initialize(app:, cache:, lockfile:, stamp:, previous:)
      @app = app
      @cached = File.join(cache, "public/assets")
      @lockfile = lockfile
      @stamp = stamp
      @previous = previous
    end

    def wanted?
      return false unless @lockfile.gem?("railties") && file?("config/application.rb") && file?("Rakefile")
      return false unless @lockfile.gem?(*PIPELINES, *READ_ANYTHING) || own_task?
      return true unless manifest?(compiled)

      puts "-----> Assets: public/assets of the source has a manifest, nothing to compile"
      false
    end

    def precompile
      inputs = digest
      if reusable?(inputs)
        FileUtils.mkdir_p(File.join(@app, "public"))
        system("cp", "--archive", "--reflink=auto", @cached, compiled, exception: true)
        @stamp.assets = inputs
        return puts("       nothing they depend on has changed: those of the last build are used")
      end

      fresh = !File.exist?(compiled)
      result = Command.run("bundle", "exec", "rake", "assets:precompile", dir: @app, env: environment)
      raise Failure, reason(result) unless result.ok?

      # The compiler's cache is not for the application; nor is a tmp that only held it.
      FileUtils.rm_rf(File.join(@app, "tmp/cache"))
      FileUtils.rmdir(File.join(@app, "tmp")) if Dir.empty?(File.join(@app, "tmp"))
      # Only what this task alone has put there can be taken over as a whole.
      @stamp.assets = inputs if fresh && manifest?(compiled)
    end

    private

    def compiled = File.join(@app, "public/assets")
    def file?(name) = File.file?(File.join(@app, name))
    def manifest?(dir) = Dir.glob(MANIFESTS, File::FNM_DOTMATCH, base: dir).any?

    def reusable?(inputs)
      @previous&.base == @stamp.base && @previous.assets == inputs &&
        !File.exist?(compiled) && manifest?(@cached)
    end

    def own_task?
      tasks = Dir.glob("#{@app}/lib/tasks/**/*.rake") << File.join(@app, "Rakefile")
      tasks.any? { |task| File.binread(task).match?(/assets|precompile/) }
    end

    def every_file_counts?
      @lockfile.gem?(*READ_ANYTHING) || own_task? || file?("package.json") ||
        Dir.glob("#{@app}/{app/assets,app/javascript,lib/assets,vendor/assets}/**/*.erb").any?
    end

    def digest
      all = every_file_counts?
      hash = Digest::SHA256.new
      Dir.glob("**/*", File::FNM_DOTMATCH, base: @app).sort.each do |name|
        path = File.join(@app, name)
        next if name.start_with?("vendor/bundle/", ".bundle/", ".mogok/") || (!all && NOT_ASSETS.match?(name))

        if File.symlink?(path)
          hash << "link #{name}\0#{File.readlink(path)}\0"
        elsif File.file?(path)
          hash << "file #{name}\0" << Digest::SHA256.file(path).digest
        end
      end
      hash.hexdigest
    end

    # No secret is in a build, and no database; Rails boots with stand-ins for both.
    def environment
      { "SECRET_KEY_BASE_DUMMY" => "1", "SECRET_KEY_BASE" => "stand-in-for-the-build-only",
        "DATABASE_URL" => database_url, "RAILS_LOG_TO_STDOUT" => "1" }.compact
    end

    def database_url
      if @lockfile.gem?("pg") then "postgresql://user:password@127.0.0.1/stand-in"
      elsif @lockfile.gem?("mysql2") then "mysql2://user:password@127.0.0.1/stand-in"
      elsif @lockfile.gem?("trilogy") then "trilogy://user:password@127.0.0.1/stand-in"
      elsif @lockfile.gem?("sqlite3") then "sqlite3:/tmp/stand-in.sqlite3"
      end
    end

    def reason(result)
      common = Command.common_reason(result, "assets:precompile")
      return common if common

      error = result.find(/\A(?:rake aborted!|bin\/rails aborted!)/) &&
              result.lines.drop_while { |line| !line.end_with?("aborted!") }[1]
      "assets:precompile failed#{": #{error}" if error}"
    end
  end
end
